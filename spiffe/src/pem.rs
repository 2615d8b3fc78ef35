//! PEM text (RFC 7468) in and out, for certificates, requests and keys.
//!
//! Says nothing about what the bytes mean.

use base64::{Engine, engine::general_purpose::STANDARD};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

/// `der` as one PEM block with a trailing newline. Wiped when dropped, for the block may be a key.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    const LINE: usize = 64;
    // Sized once: a string that grows leaves unwiped copies of a key behind.
    let body = Zeroizing::new(STANDARD.encode(der));
    let mut text =
        Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in body.as_bytes().chunks(LINE) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Every block of `text` as (label, DER), in order. `None` if any block is malformed; text between blocks is ignored.
pub(crate) fn decode(text: &[u8]) -> Option<Vec<(String, Zeroizing<Vec<u8>>)>> {
    Pem::iter_from_buffer(text)
        .map(|block| block.ok().map(|Pem { label, contents }| (label, Zeroizing::new(contents))))
        .collect()
}
