;; Input: u32 n. Grows its empty table by n elements.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 1)
  (table 0 funcref)
  (func (export "_start") (result i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (i32.eq (table.grow 0 (ref.null func) (i32.load (i32.const 0))) (i32.const -1))))
