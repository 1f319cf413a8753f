;; Input: u32 times, then a path. Opens it so often in the first directory, without closing. Output: u32 how often that
;; worked, u32 the errno that ended it.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (block $done (loop $again
      (br_if $done (i32.ge_u (i32.load (i32.const 8192)) (i32.load (i32.const 0))))
      (i32.store (i32.const 8196) (call $open (i32.const 3) (i32.const 0) (i32.const 4)
        (i32.sub (call $input_len) (i32.const 4)) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0)
        (i32.const 8200)))
      (br_if $done (i32.load (i32.const 8196)))
      (i32.store (i32.const 8192) (i32.add (i32.load (i32.const 8192)) (i32.const 1)))
      (br $again)))
    (call $output (i32.const 8192) (i32.const 8))))
