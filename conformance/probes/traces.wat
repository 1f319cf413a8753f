;; Input: 32 bytes. Output: u32 flags (1 memory not zero, 2 global set, 4 table set), then the 32 bytes found where the
;; previous call left its own. Then leaves its input in memory, and sets the global and the table.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 4)
  (global $mark (mut i32) (i32.const 0))
  (table 16 funcref)
  (func $f)
  (elem declare func $f)
  (func (export "_start") (local $at i32) (local $flags i32)
    (loop $scan
      (if (i64.ne (i64.load (local.get $at)) (i64.const 0)) (then
        (local.set $flags (i32.const 1))))
      (local.set $at (i32.add (local.get $at) (i32.const 8)))
      (br_if $scan (i32.lt_u (local.get $at) (i32.const 262144))))
    (if (global.get $mark) (then (local.set $flags (i32.or (local.get $flags) (i32.const 2)))))
    (if (i32.eqz (ref.is_null (table.get 0 (i32.const 7)))) (then
      (local.set $flags (i32.or (local.get $flags) (i32.const 4)))))
    (i32.store (i32.const 65532) (local.get $flags))
    (call $output (i32.const 65532) (i32.const 36))
    (i32.store (i32.const 65532) (i32.const 0))
    (drop (call $input_read (i32.const 0) (i32.const 65536) (i32.const 32)))
    (global.set $mark (i32.const 1))
    (table.set 0 (i32.const 7) (ref.func $f))))
