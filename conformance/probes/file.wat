;; Input: u32 operation, u32 directory, u32 other directory, u32 length of path, u32 length of other path, u32 length of
;; data, then both paths and the data. Operations: 0 read, 1 write (creating it), 2 unlink, 3 rename, 4 make a directory,
;; 5 link, 6 make a symbolic link at "path" to "other path". Output: u32 errno, then what was read, or u32 bytes written.
(module
  (import "palisade" "input_len" (func $input_len (result i32)))
  (import "palisade" "input_read" (func $input_read (param i32 i32 i32) (result i32)))
  (import "palisade" "output_write" (func $output (param i32 i32)))
  (import "palisade" "error_write" (func $error (param i32 i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_link" (func $link (param i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $attempt (param $op i32) (param $path i32) (param $len i32) (param $other i32) (param $other_len i32)
    (result i32) (local $errno i32) (local $file i32) (local $dir i32) (local $other_dir i32)
    (local.set $dir (i32.load (i32.const 4)))
    (local.set $other_dir (i32.load (i32.const 8)))
    (if (i32.lt_u (local.get $op) (i32.const 2)) (then
      ;; rights: fd_read is 2, fd_write 64; lookup follows links; oflags: creat 1 + trunc 8
      (local.set $errno (call $open (local.get $dir) (i32.const 1) (local.get $path) (local.get $len)
        (select (i32.const 9) (i32.const 0) (local.get $op))
        (select (i64.const 64) (i64.const 2) (local.get $op)) (i64.const 0) (i32.const 0) (i32.const 65536)))
      (if (local.get $errno) (then (return (local.get $errno))))
      (local.set $file (i32.load (i32.const 65536)))
      (if (local.get $op)
        (then
          (i32.store (i32.const 65540) (i32.add (local.get $other) (local.get $other_len)))
          (i32.store (i32.const 65544) (i32.load (i32.const 20)))
          (local.set $errno (call $write (local.get $file) (i32.const 65540) (i32.const 1) (i32.const 65552)))
          (i32.store (i32.const 65548) (i32.const 4)))
        (else
          (i32.store (i32.const 65540) (i32.const 65552))
          (i32.store (i32.const 65544) (i32.const 4096))
          (local.set $errno (call $read (local.get $file) (i32.const 65540) (i32.const 1) (i32.const 65548)))))
      (drop (call $close (local.get $file)))
      (return (local.get $errno))))
    (if (i32.eq (local.get $op) (i32.const 2)) (then
      (return (call $unlink (local.get $dir) (local.get $path) (local.get $len)))))
    (if (i32.eq (local.get $op) (i32.const 3)) (then
      (return (call $rename (local.get $dir) (local.get $path) (local.get $len)
        (local.get $other_dir) (local.get $other) (local.get $other_len)))))
    (if (i32.eq (local.get $op) (i32.const 4)) (then
      (return (call $mkdir (local.get $dir) (local.get $path) (local.get $len)))))
    (if (i32.eq (local.get $op) (i32.const 5)) (then
      (return (call $link (local.get $dir) (i32.const 0) (local.get $path) (local.get $len)
        (local.get $other_dir) (local.get $other) (local.get $other_len)))))
    (call $symlink (local.get $other) (local.get $other_len)
      (local.get $dir) (local.get $path) (local.get $len)))
  (func (export "_start") (local $other i32)
    (drop (call $input_read (i32.const 0) (i32.const 0) (call $input_len)))
    (local.set $other (i32.add (i32.const 24) (i32.load (i32.const 12))))
    ;; The answer is at 65548: the length of the data while it is made, then the errno; the data at 65552.
    (i32.store (i32.const 65536) (call $attempt (i32.load (i32.const 0)) (i32.const 24) (i32.load (i32.const 12))
      (local.get $other) (i32.load (i32.const 16))))
    (local.set $other (i32.load (i32.const 65548)))
    (i32.store (i32.const 65548) (i32.load (i32.const 65536)))
    (call $output (i32.const 65548) (i32.add (i32.const 4) (local.get $other)))))
