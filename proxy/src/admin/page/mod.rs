//! The live page: three files of our own, built into the program. Nothing is fetched from anywhere else.

use axum::http::header;
use axum::response::IntoResponse;

/// The document.
pub(super) const HTML: &str = include_str!("index.html");
/// Its style.
pub(super) const CSS: &str = include_str!("page.css");
/// Its script.
pub(super) const JS: &str = include_str!("page.js");

pub(super) async fn html() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], HTML)
}

pub(super) async fn css() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], CSS)
}

pub(super) async fn js() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], JS)
}
