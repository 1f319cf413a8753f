;; Greets whoever its input names.
;;
;;     $ echo Ada | palisade run plugins/hello/hello.wat
;;     Hello, Ada!
;;
;; A WASI command: its entry point is `_start`, standard input is its input, standard output its output. A real plugin
;; is written in Rust, C, Go or whatever else builds for `wasm32-wasip1`; by hand one sees all there is to it.
(module
  ;; What it uses of its host. Reading and writing its own streams needs no grant.
  (import "wasi_snapshot_preview1" "fd_read"
    (func $fd_read (param $fd i32) (param $buffers i32) (param $count i32) (param $read i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param $fd i32) (param $buffers i32) (param $count i32) (param $written i32) (result i32)))

  ;; One page of 64 KiB. The host finds it by its name. What lies where:
  ;;     0  a buffer's address and length, for the host
  ;;     8  how many bytes the host read or wrote
  ;;    16  texts
  ;;   100  the name, at most 1000 bytes of it
  (memory (export "memory") 1)
  (data (i32.const 16) "Hello, ")
  (data (i32.const 32) "stranger")
  (data (i32.const 48) "!\n")

  (func $print (param $text i32) (param $len i32)
    (i32.store (i32.const 0) (local.get $text))
    (i32.store (i32.const 4) (local.get $len))
    ;; 1 is standard output. Whatever error there may be, this plugin cannot do better without its output.
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))

  ;; Reads up to the end of the input, or until the name is long enough. Returns the name's length.
  (func $read_name (result i32) (local $len i32)
    (loop $more
      (i32.store (i32.const 0) (i32.add (i32.const 100) (local.get $len)))
      (i32.store (i32.const 4) (i32.sub (i32.const 1000) (local.get $len)))
      ;; 0 is standard input. Input comes in pieces; a piece of no bytes is its end.
      (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (local.set $len (i32.add (local.get $len) (i32.load (i32.const 8))))
      (br_if $more (i32.load (i32.const 8))))
    ;; Without the line break that `echo` adds.
    (if (local.get $len)
      (then
        (if (i32.eq (i32.load8_u offset=99 (local.get $len)) (i32.const 10))
          (then (local.set $len (i32.sub (local.get $len) (i32.const 1)))))))
    (local.get $len))

  (func (export "_start") (local $len i32)
    (local.set $len (call $read_name))
    (call $print (i32.const 16) (i32.const 7))
    (if (local.get $len)
      (then (call $print (i32.const 100) (local.get $len)))
      (else (call $print (i32.const 32) (i32.const 8))))
    (call $print (i32.const 48) (i32.const 2))))
