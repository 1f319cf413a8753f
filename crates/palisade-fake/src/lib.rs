//! The in-memory reference backend of Palisade, breakable on purpose.
#![forbid(unsafe_code)]
