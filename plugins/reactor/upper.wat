;; Answers with its input in upper case (ASCII letters only).
;;
;;     $ palisade run plugins/reactor/upper.wat --entry upper -i 'ahoy'
;;     AHOY
;;
;; A reactor: no standard streams, just functions of the module `palisade` that copy bytes in and out. Entry points are
;; exports without parameters, which return nothing or a number of which 0 means success. The host copies only when it
;; is asked to, and never calls an allocator in here.
(module
  ;; Bytes of input.
  (import "palisade" "input_len" (func $input_len (result i32)))
  ;; Copies at most `len` bytes of the input, from `offset` on, to `ptr`. Returns how many it copied.
  (import "palisade" "input_read" (func $input_read (param $offset i32) (param $ptr i32) (param $len i32) (result i32)))
  ;; Appends to the output.
  (import "palisade" "output_write" (func $output_write (param $ptr i32) (param $len i32)))

  ;; One page of 64 KiB, all of it the buffer. Input of any length goes through it piece by piece.
  (memory (export "memory") 1)

  ;; Puts the letters among the first `len` bytes of the buffer into upper case.
  (func $upper_case (param $len i32) (local $at i32) (local $letter i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $at) (local.get $len)))
        (local.set $letter (i32.load8_u (local.get $at)))
        ;; From `a` to `z`; the upper-case letters lie 32 below.
        (if (i32.lt_u (i32.sub (local.get $letter) (i32.const 97)) (i32.const 26))
          (then (i32.store8 (local.get $at) (i32.sub (local.get $letter) (i32.const 32)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next))))

  (func (export "upper") (local $offset i32) (local $len i32)
    (block $done
      (loop $piece
        (br_if $done (i32.ge_u (local.get $offset) (call $input_len)))
        (local.set $len (call $input_read (local.get $offset) (i32.const 0) (i32.const 65536)))
        (call $upper_case (local.get $len))
        (call $output_write (i32.const 0) (local.get $len))
        (local.set $offset (i32.add (local.get $offset) (local.get $len)))
        (br $piece)))))
