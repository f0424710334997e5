//! Heads as browsers, curl and applications write them: parsed, and written on.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use outrigger_proxy::config::ServerHeader;
use outrigger_proxy::http1::{
    BodyLength, Connection, HeadLimits, RequestEdits, RequestTable, ResponseEdits, ResponseLimits, ResponseTable,
    Trust, write_request_head, write_response_head,
};

const CURL: &[u8] =
    b"GET /v1/orders/17 HTTP/1.1\r\nHost: orders.shop:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

const BROWSER: &[u8] = b"GET /catalogue/lamps?colour=green&page=2 HTTP/1.1\r\n\
Host: shop.example\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"130\", \"Not?A_Brand\";v=\"99\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
Upgrade-Insecure-Requests: 1\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-User: ?1\r\n\
Sec-Fetch-Dest: document\r\n\
Referer: https://shop.example/catalogue\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Accept-Language: en-GB,en;q=0.9\r\n\
Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; basket=17%2C4%2C9\r\n\r\n";

const SMALL: &[u8] = b"HTTP/1.1 200 OK\r\nServer: app\r\nDate: Tue, 24 Nov 2026 09:00:00 GMT\r\n\
Content-Type: application/json\r\nContent-Length: 128\r\n\r\n";

const RICH: &[u8] = b"HTTP/1.1 200 OK\r\n\
Date: Tue, 24 Nov 2026 09:00:00 GMT\r\n\
Content-Type: text/html; charset=utf-8\r\n\
Transfer-Encoding: chunked\r\n\
Connection: keep-alive\r\n\
Vary: Accept-Encoding\r\n\
Cache-Control: private, max-age=0, must-revalidate\r\n\
ETag: W/\"3f80f-1b6-3e1cb03b\"\r\n\
Set-Cookie: session=0123456789abcdef0123456789abcdef; Path=/; HttpOnly; Secure; SameSite=Lax\r\n\
Strict-Transport-Security: max-age=31536000; includeSubDomains\r\n\
X-Content-Type-Options: nosniff\r\n\
X-Request-Id: 0b3c9e54-6f0e-4c39-9d0c-6a2f5b1d7e10\r\n\
Content-Security-Policy: default-src 'self'\r\n\r\n";

const ID: &[u8] = b"00000000-0000-4000-8000-000000000000";

pub(crate) fn bench(criterion: &mut Criterion) {
    requests(criterion);
    responses(criterion);
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request head");
    let limits = HeadLimits { max_bytes: 60 * 1024, max_headers: 100, underscores: Default::default() };
    for (name, bytes) in [("curl", CURL), ("browser", BROWSER)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut table = RequestTable::default();
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| table.parse(black_box(bytes), &limits));
        });
        let head = table.view(bytes);
        let edits = RequestEdits {
            trust: Trust::Edge,
            request_id: Some(ID),
            forwarded_for: Some([127, 0, 0, 1].into()),
            ..RequestEdits::default()
        };
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new("write", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                write_request_head(black_box(&head), &edits, &mut out);
            });
        });
    }
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("response head");
    let limits = ResponseLimits::default();
    for (name, bytes) in [("small", SMALL), ("rich", RICH)] {
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        let mut table = ResponseTable::default();
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| table.parse(black_box(bytes), &limits));
        });
        let head = table.view(bytes);
        let edits = ResponseEdits {
            body: if name == "small" { BodyLength::Length(128) } else { BodyLength::Chunked },
            levels: &[],
            server: ServerHeader::Overwrite,
            server_name: "outrigger",
            via: "",
            date: b"Tue, 24 Nov 2026 09:00:00 GMT",
            extra: &[],
            connection: Connection::Implied,
        };
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new("write", name), |bencher| {
            bencher.iter(|| {
                out.clear();
                write_response_head(black_box(&head), &edits, &mut out);
            });
        });
    }
    group.finish();
}
