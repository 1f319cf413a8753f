;; Copies standard input, as it arrives, to its output.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (result i32) (local $errno i32)
    (loop $again
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const 4096))
      (local.set $errno (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (if (local.get $errno) (then (return (local.get $errno))))
      (if (i32.load (i32.const 8)) (then
        (call $output (i32.const 1024) (i32.load (i32.const 8)))
        (br $again))))
    (i32.const 0)))
