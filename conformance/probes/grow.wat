;; Input: u32 pages. Grows its one page of memory by so many and touches each.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 1)
  (func (export "_start") (result i32) (local $at i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (if (i32.eq (memory.grow (i32.load (i32.const 0))) (i32.const -1)) (then (return (i32.const 1))))
    (loop $again
      (i32.store8 offset=4096 (local.get $at) (i32.const 1))
      (local.set $at (i32.add (local.get $at) (i32.const 65536)))
      (br_if $again (i32.lt_u (local.get $at) (i32.mul (memory.size) (i32.const 65536)))))
    (i32.const 0)))
