//! Stand-in.

/// Stand-in.
pub async fn serve(_listener: tokio::net::TcpListener, _name: String) -> std::io::Result<()> {
    std::future::pending().await
}
