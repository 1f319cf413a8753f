;; A WASI reactor. Entry "run" outputs how often "_initialize" ran, as u32.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (memory (export "memory") 1)
  (global $made (mut i32) (i32.const 0))
  (func (export "_initialize") (global.set $made (i32.add (global.get $made) (i32.const 1))))
  (func (export "run")
    (i32.store (i32.const 0) (global.get $made))
    (call $output (i32.const 0) (i32.const 4))))
