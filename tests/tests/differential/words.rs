//! What policies and requests are made of: values that are near each other, so that a policy's edge is often met.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// URI SANs whose trust domain is accepted with the alias `td2`.
pub(crate) const IDENTITIES: &[&str] = &[
    "spiffe://cluster.local/ns/foo/sa/a",
    "spiffe://cluster.local/ns/foo/sa/ab",
    "spiffe://cluster.local/ns/foo/sa/A",
    "spiffe://cluster.local/ns/fo/sa/a",
    "spiffe://cluster.local/ns/fooo/sa/a",
    "spiffe://cluster.local/ns/bar/sa/a",
    "spiffe://cluster.local/ns/bar/sa/b.c",
    "spiffe://cluster.local/ns/bar/sa/bxc",
    "spiffe://cluster.local/ns/b.r/sa/a",
    "spiffe://cluster.local/ns/evil/sa/x/ns/foo/sa/a",
    "spiffe://cluster.local/ns/foo/sub/sa/a",
    "spiffe://cluster.local/ns/foo/sa/a/more",
    "spiffe://cluster.local/ns/foosa/a",
    "spiffe://cluster.local/orders",
    "spiffe://cluster.local/ns/foo",
    "spiffe://cluster.local/ns/a+b/sa/(x|y)",
    "spiffe://cluster.local/ns/aab/sa/x",
    "spiffe://cluster.local/ns/a\\Eb/sa/[a-z]$",
    "spiffe://td2/ns/foo/sa/a",
    "spiffe://td2/ns/bar/sa/a",
];

pub(crate) const DOMAINS: &[&str] =
    &["cluster.local", "td2", "td.3", "cluster", "cluster.loca", "other.example"];
pub(crate) const NAMESPACES: &[&str] =
    &["foo", "bar", "fo", "fooo", "b.r", "evil", "default", "a+b", "aab", "a\\Eb"];
pub(crate) const ACCOUNTS: &[&str] = &[
    "a",
    "ab",
    "b.c",
    "x",
    "A",
    "foo/a",
    "bar/a",
    "a+b/(x|y)",
    "aab/x",
    "a\\Eb/[a-z]$",
    "bar/b.c",
    "evil/x",
    "b.r/a",
    "fo/a",
];
pub(crate) const SOURCES: &[&str] = &[
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.3",
    "127.0.0.4",
    "127.0.0.127",
    "127.0.0.128",
    "127.0.1.0",
    "127.0.0.255",
    "127.1.0.1",
    "127.255.255.254",
];
pub(crate) const REMOTES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.255",
    "10.0.1.0",
    "192.0.2.1",
    "2001:db8::1",
    "2001:db8::2",
    "::ffff:10.0.0.1",
];
pub(crate) const ISSUERS: &[&str] =
    &["https://login.example", "https://login.example/", "accounts.example", "login.example"];
pub(crate) const SUBJECTS: &[&str] =
    &["alice", "alic", "alicee", "Alice", "bob", "a/b", "*", "al*", "", "ali\nce"];
pub(crate) const AUDIENCES: &[&str] =
    &["shop", "shop.example", "shop2", "Shop", "https://shop", "https://shop/", "other"];
pub(crate) const PRESENTERS: &[&str] = &["client-1", "client-2", "client-11", "cli", "Client-1"];
pub(crate) const GROUPS: &[&str] =
    &["admin", "admins", "admi", "dev", "Admin", "read:a", "read:b", "", "a b", "1", "true"];
pub(crate) const HOSTS: &[&str] = &[
    "shop.example",
    "shop.example:8080",
    "shop.example:80",
    "SHOP.example",
    "a.shop.example",
    "xshop.example",
    "shop.example.",
    "shop",
    "h",
];
pub(crate) const METHODS: &[&str] = &["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"];
pub(crate) const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/A",
    "/ab",
    "/a/b",
    "/a/b/",
    "/a/b/c",
    "/a//b",
    "//a",
    "/admin",
    "/admin/x",
    "/Admin",
    "/adm",
    "/a.b",
    "/axb",
    "/a*b",
    "/a/*",
    "/*",
    "/a%2Fb",
    "/a%2fb",
    "/%61",
    "/a/../b",
    "/a/./b",
    "/a;x=1",
    "/a;x",
    "/a/;/b",
    "/a%20b",
    "/a+b",
    "/a%5Cb",
    "/a/..",
    "/%2e%2e/a",
    "/store/x/cart",
    "/store/x/y/cart",
    "/store//cart",
    "/store/cart",
    "/pkg.Service/Method",
    "/a/%2A",
    "/a~b",
    "/a/b.json",
    "/é",
    "/a(b)",
    "/a|b",
    "/a$",
    "/a%",
    "/a%zz",
    "/a:b",
    "/a@b",
    "/a=b&c",
    r"/a\b",
    "/a%00b",
    "/a[b]",
    "/a^b",
];
pub(crate) const TEMPLATES: &[&str] =
    &["/{*}", "/a/{*}", "/a/{*}/c", "/{*}/b", "/store/{*}/cart", "/a/{*}/{*}"];
pub(crate) const DEEP_TEMPLATES: &[&str] =
    &["/{**}", "/a/{**}", "/store/{**}/cart", "/{*}/{**}", "/{**}/cart", "/a/{*}/{**}"];
pub(crate) const HEADERS: &[&str] = &[
    "x-tenant",
    "X-Tenant",
    "x-user",
    "x-tenants",
    "x-empty",
    "accept",
    "user-agent",
    ":path",
    ":method",
    ":authority",
    "host",
    "cookie",
    "authorization",
    "x-jwt",
    "x-token",
    "x-forwarded-for",
];
pub(crate) const VALUES: &[&str] = &[
    "acme",
    "acm",
    "acmee",
    "Acme",
    "xacme",
    "acme,other",
    "a*",
    "*",
    "",
    "other",
    "acme corp",
    "é",
    "acmé",
    "a+b",
    "aab",
    "a.b",
    "axb",
    "GET",
    "/a",
    "/a?x=/b",
    "shop.example",
    "10.0.0.1",
    "a=b",
];
pub(crate) const SNIS: &[&str] =
    &["outbound_.8080_._.a.foo.svc", "a.foo.svc", "b.foo.svc", "foo.svc", "xfoo.svc", "shop.example"];
pub(crate) const PORTS: &[&str] = &["8080", "8081", "9000", "8079", "9001", "80", "0", "65535"];

pub(crate) fn pick<'w>(rng: &mut StdRng, words: &[&'w str]) -> &'w str {
    words.choose(rng).expect("there are words")
}

pub(crate) fn chance(rng: &mut StdRng, percent: u32) -> bool {
    rng.random_range(0..100) < percent
}

/// Something that is nearly `text`. Stays printable ASCII if it was.
pub(crate) fn near(rng: &mut StdRng, text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let cut = |from: usize, to: usize| chars[from..to].iter().collect::<String>();
    match rng.random_range(0..8) {
        0 => format!("{text}x"),
        1 => format!("x{text}"),
        2 if !chars.is_empty() => cut(0, chars.len() - 1),
        3 if !chars.is_empty() => cut(1, chars.len()),
        4 => {
            let at = rng.random_range(0..chars.len().max(1));
            let flip =
                |c: char| if c.is_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            chars.iter().enumerate().map(|(i, c)| if i == at { flip(*c) } else { *c }).collect()
        }
        5 => text.replacen('.', "x", 1),
        6 => format!("{text}{text}"),
        7 => String::new(),
        _ => text.to_owned(),
    }
}
