;; Writes its environment variables to its output, each ended by a NUL byte.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $get (param i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start") (result i32)
    (if (call $sizes (i32.const 0) (i32.const 4)) (then (return (i32.const 1))))
    (if (call $get (i32.const 8) (i32.const 65536)) (then (return (i32.const 2))))
    (call $output (i32.const 65536) (i32.load (i32.const 4)))
    (i32.const 0)))
