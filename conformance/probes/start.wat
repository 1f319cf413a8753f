;; Input: u64 n. Writes "started" to its error text and counts to n in its start function, before its entry.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "started")
  (func $begin (local $left i64)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $left (i64.load (i32.const 0)))
    (call $error (i32.const 64) (i32.const 7))
    (loop $again
      (if (i64.ne (local.get $left) (i64.const 0)) (then
        (local.set $left (i64.sub (local.get $left) (i64.const 1)))
        (br $again)))))
  (start $begin)
  (func (export "_start")))
