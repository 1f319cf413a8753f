;; Copies its input to its output.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output_write (param i32 i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (call $output_write (i32.const 0) (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))))
