//! Stop new, finish old, deadline: one type for connections and the process.
