;; Input: u64 nanoseconds. Sleeps for that long on the monotonic clock.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (result i32)
    ;; A subscription at 0: tag clock at 8, clock id at 16, timeout at 24, flags (relative) at 40.
    (i32.store (i32.const 16) (i32.const 1))
    (drop (call $input_read (i32.const 0) (i32.const 24) (i32.const 8)))
    (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
