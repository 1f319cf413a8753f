;; Input: u32 pages, u32 times. Grows by so many pages and fills them with random bytes so often.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start") (result i32) (local $pages i32) (local $left i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $pages (i32.load (i32.const 0)))
    (local.set $left (i32.load (i32.const 4)))
    (if (i32.eq (memory.grow (local.get $pages)) (i32.const -1)) (then (return (i32.const 2))))
    (loop $again
      (if (local.get $left) (then
        (if (call $random (i32.const 65536) (i32.shl (local.get $pages) (i32.const 16))) (then (return (i32.const 1))))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $again))))
    (i32.const 0)))
