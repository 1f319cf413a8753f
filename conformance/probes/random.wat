;; Output: 32 random bytes.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (result i32)
    (if (call $random (i32.const 0) (i32.const 32)) (then (return (i32.const 1))))
    (call $output (i32.const 0) (i32.const 32))
    (i32.const 0)))
