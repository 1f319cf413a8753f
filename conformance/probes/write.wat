;; Input: u32 stream (0 output, 1 error text, 2 log), u32 length up to 32768, u32 times. Writes so many bytes so often.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "palisade" "log" (func $log (param i32 i32 i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $left i32) (local $len i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (memory.fill (i32.const 32768) (i32.const 120) (i32.const 32768))
    (local.set $len (i32.load (i32.const 4)))
    (local.set $left (i32.load (i32.const 8)))
    (loop $again
      (if (local.get $left) (then
        (if (i32.eq (i32.load (i32.const 0)) (i32.const 0)) (then (call $output (i32.const 32768) (local.get $len))))
        (if (i32.eq (i32.load (i32.const 0)) (i32.const 1)) (then (call $error (i32.const 32768) (local.get $len))))
        (if (i32.eq (i32.load (i32.const 0)) (i32.const 2)) (then
          (call $log (i32.const 2) (i32.const 32768) (local.get $len))))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $again))))))
