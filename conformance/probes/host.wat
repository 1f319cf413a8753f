;; Input: u32 times, then a name. Calls that host function that often with "argument"; its last result is the output, or
;; its error the error text and exit code 1. Without a call, the output is whatever an earlier one left to be read.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "palisade" "host_call" (func $host_call (param i32 i32 i32 i32) (result i64)))
  (import "palisade" "host_result_read" (func $result_read (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 2048) "argument")
  (func (export "_start") (result i32) (local $reply i64) (local $left i32) (local $len i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $left (i32.load (i32.const 0)))
    (loop $again
      (if (local.get $left) (then
        (local.set $reply (call $host_call (i32.const 4) (i32.sub (call $input_len) (i32.const 4))
          (i32.const 2048) (i32.const 8)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $again))))
    (if (i32.eqz (i32.load (i32.const 0))) (then
      (call $output (i32.const 4096) (call $result_read (i32.const 0) (i32.const 4096) (i32.const 64)))
      (return (i32.const 0))))
    (local.set $len (call $result_read (i32.const 0) (i32.const 4096) (i32.wrap_i64 (local.get $reply))))
    (if (i64.ne (i64.shr_u (local.get $reply) (i64.const 32)) (i64.const 0)) (then
      (call $error (i32.const 4096) (local.get $len))
      (return (i32.const 1))))
    (call $output (i32.const 4096) (local.get $len))
    (i32.const 0)))
