//! Problems with their place in the file, shown the way rustc does.
