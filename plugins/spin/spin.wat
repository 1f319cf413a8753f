;; Never ends, to show what a deadline is for.
;;
;;     $ palisade run --wall-time 1s plugins/spin/spin.wat; echo $?
;;     palisade: exceeded wall_time: 1 s of 1 s while running | …
;;     124
;;
;; Try `--cpu-time 1s` or `--fuel 1M` too: fuel counts instructions, and stops it at the same one every time.
(module
  (func (export "_start")
    ;; `br 0` goes back to where the loop begins.
    (loop (br 0))))
