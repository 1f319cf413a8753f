;; Input: u32 kind. 0 does nothing, 1 reaches unreachable code, 2 leaves its memory, 3 divides by zero, 4 leaves its table,
;; 5 gives the host a range outside its memory.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 1)
  (table 1 funcref)
  (func (export "_start") (local $kind i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $kind (i32.load (i32.const 0)))
    (if (i32.eq (local.get $kind) (i32.const 1)) (then unreachable))
    (if (i32.eq (local.get $kind) (i32.const 2)) (then (i32.store (i32.const 65533) (i32.const 1))))
    (if (i32.eq (local.get $kind) (i32.const 3)) (then
      (drop (i32.div_u (i32.const 1) (i32.load (i32.const 1024))))))
    (if (i32.eq (local.get $kind) (i32.const 4)) (then (drop (table.get 0 (i32.const 1)))))
    (if (i32.eq (local.get $kind) (i32.const 5)) (then (call $output (i32.const 65530) (i32.const 7))))))
