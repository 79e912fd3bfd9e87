//! Unix sockets as addresses.

/// What the address of one begins with.
pub(crate) const UNIX_MARK: &str = "unix:";
/// Longest path: `sun_path` without its ending zero.
const UNIX_BYTES_MAX: usize = 107;

/// One way to write each path, so that what is allowed can be compared with it.
pub(super) fn check_path(path: &str) -> Result<(), &'static str> {
    let Some(rest) = path.strip_prefix('/') else {
        return Err("the path of the socket does not begin with /");
    };
    if path.len() > UNIX_BYTES_MAX {
        return Err("it is longer than 107 bytes, which no path of a socket is");
    }
    if path.chars().any(char::is_control) {
        return Err("the path of the socket has a control character");
    }
    if rest.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("the path of the socket has an empty part, . or ..");
    }
    Ok(())
}
