;; Input: u32 length up to 1 MiB. Calls the host function "f" with so many bytes.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
  (memory (export "memory") 17)
  (data (i32.const 16) "f")
  (func (export "_start")
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (drop (call $host_call (i32.const 16) (i32.const 1) (i32.const 65536) (i32.load (i32.const 0))))))
