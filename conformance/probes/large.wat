;; Declares 32 pages of memory to start with, and touches the last.
(module
  (memory (export "memory") 32)
  (func (export "_start") (i32.store8 (i32.const 2097151) (i32.const 1))))
