;; Input: u64 cookie. Reads up to 4096 bytes of entries of directory 3 from there. Output: u32 errno, u32 bytes, the bytes.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $readdir (param i32 i32 i32 i64 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (i32.store (i32.const 1016)
      (call $readdir (i32.const 3) (i32.const 1024) (i32.const 4096) (i64.load (i32.const 0)) (i32.const 1020)))
    (call $output (i32.const 1016) (i32.add (i32.const 8) (i32.load (i32.const 1020))))))
