;; Imports something no host provides.
(module
  (import "palisade_test" "back_door" (func $open))
  (memory (export "memory") 1)
  (func (export "_start") (call $open)))
