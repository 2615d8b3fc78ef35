//! Whether Envoy can compile a log filter (CEL), and whether it can ever hold. Envoy refuses a listener with an expression
//! that it cannot compile, and its policy with it, so nothing is sent that was not understood here. It evaluates nothing.
//!
//! Taken is the part of the language that Envoy 1.36 to 1.40 have with their default settings: no comprehensions, no text
//! made from other values. `matches` is refused, for Envoy bounds the size of a pattern in terms of its own.

use std::iter::Peekable;

mod lexer;

use lexer::{Lexer, Token};

/// Characters; far below Envoy's own limit.
const MAX_LENGTH: usize = 4000;
/// Parentheses, brackets, arguments and chained operators within one another; Envoy gives up somewhere above 30.
const MAX_DEPTH: usize = 12;
/// `&&`, `||` and the members of a list.
const MAX_WIDTH: usize = 64;

/// What Envoy knows of a request or connection, by its first two names; no second names: any.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    (
        "connection",
        &[
            "id",
            "mtls",
            "requested_server_name",
            "tls_version",
            "subject_local_certificate",
            "subject_peer_certificate",
            "dns_san_local_certificate",
            "dns_san_peer_certificate",
            "uri_san_local_certificate",
            "uri_san_peer_certificate",
            "sha256_peer_certificate_digest",
            "transport_failure_reason",
            "termination_details",
        ],
    ),
    ("destination", &["address", "port"]),
    ("filter_state", &[]),
    ("metadata", &[]),
    (
        "request",
        &[
            "path",
            "url_path",
            "host",
            "scheme",
            "method",
            "headers",
            "referer",
            "useragent",
            "time",
            "id",
            "protocol",
            "query",
            "duration",
            "size",
            "total_size",
        ],
    ),
    (
        "response",
        &[
            "code",
            "code_details",
            "flags",
            "grpc_status",
            "headers",
            "trailers",
            "size",
            "total_size",
            "backend_latency",
        ],
    ),
    ("source", &["address", "port"]),
    (
        "upstream",
        &[
            "address",
            "port",
            "tls_version",
            "subject_local_certificate",
            "subject_peer_certificate",
            "dns_san_local_certificate",
            "dns_san_peer_certificate",
            "uri_san_local_certificate",
            "uri_san_peer_certificate",
            "sha256_peer_certificate_digest",
            "local_address",
            "transport_failure_reason",
            "request_attempt_count",
            "cx_pool_ready_duration",
        ],
    ),
    (
        "xds",
        &[
            "cluster_name",
            "cluster_metadata",
            "route_name",
            "route_metadata",
            "upstream_host_metadata",
            "filter_chain_name",
            "listener_metadata",
            "listener_direction",
            "node",
            "virtual_host_name",
            "virtual_host_metadata",
        ],
    ),
];

/// Functions by name: called on a value, and how many arguments besides it.
const METHODS: &[(&str, usize)] = &[
    ("contains", 1),
    ("startsWith", 1),
    ("endsWith", 1),
    ("size", 0),
    ("getFullYear", 0),
    ("getMonth", 0),
    ("getDate", 0),
    ("getDayOfMonth", 0),
    ("getDayOfWeek", 0),
    ("getDayOfYear", 0),
    ("getHours", 0),
    ("getMinutes", 0),
    ("getSeconds", 0),
    ("getMilliseconds", 0),
];
const FUNCTIONS: &[(&str, usize)] =
    &[("size", 1), ("int", 1), ("uint", 1), ("double", 1), ("duration", 1), ("timestamp", 1)];

/// Why `expression` is no filter, in words.
pub(crate) fn check(expression: &str) -> Result<(), String> {
    if expression.trim().is_empty() {
        return Err("an expression is required".to_owned());
    }
    if expression.chars().count() > MAX_LENGTH {
        return Err(format!("at most {MAX_LENGTH} characters are allowed"));
    }
    let mut parser = Parser { tokens: Lexer::new(expression).peekable(), width: 0 };
    let found = parser.expression(0)?;
    match parser.tokens.next() {
        None => {}
        Some(token) => return Err(format!("unexpected {}", token?)),
    }
    match found.kind {
        Type::Bool | Type::Any => Ok(()),
        Type::Other => Err("it is neither true nor false, so nothing would be logged".to_owned()),
    }
}

/// What an expression can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Bool,
    /// Known when it is evaluated.
    Any,
    Other,
}

/// One part of an expression.
#[derive(Clone, Debug)]
struct Part {
    kind: Type,
    /// It selects a field, so `has` may ask for it.
    field: bool,
}

impl Part {
    fn of(kind: Type) -> Self {
        Self { kind, field: false }
    }
}

type Parsed = Result<Part, String>;

struct Parser<'e> {
    tokens: Peekable<Lexer<'e>>,
    width: usize,
}

impl Parser<'_> {
    fn peek(&mut self) -> Result<Option<Token>, String> {
        self.tokens.peek().cloned().transpose()
    }

    /// Takes the next token if it is this sign.
    fn eat(&mut self, sign: &str) -> Result<bool, String> {
        let found = matches!(self.peek()?, Some(Token::Sign(s)) if s == sign);
        if found {
            self.tokens.next();
        }
        Ok(found)
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.eat(sign)? {
            return Ok(());
        }
        Err(match self.peek()? {
            Some(token) => format!("unexpected {token}: `{sign}` is missing"),
            None => format!("`{sign}` is missing at the end"),
        })
    }

    fn one_of(&mut self, signs: &[&'static str]) -> Result<Option<&'static str>, String> {
        for sign in signs {
            if self.eat(sign)? {
                return Ok(Some(sign));
            }
        }
        Ok(None)
    }

    fn widen(&mut self) -> Result<(), String> {
        self.width += 1;
        if self.width > MAX_WIDTH {
            return Err(format!("more than {MAX_WIDTH} parts"));
        }
        Ok(())
    }

    /// `a ? b : c`, or what binds closer.
    fn expression(&mut self, depth: usize) -> Parsed {
        let depth = deeper(depth)?;
        let first = self.logic(depth, &["||"])?;
        if !self.eat("?")? {
            return Ok(first);
        }
        must_be_bool(&first, "what is before `?`")?;
        let yes = self.logic(depth, &["||"])?;
        self.expect(":")?;
        let no = self.expression(depth)?;
        let kind = match (yes.kind, no.kind) {
            (Type::Other, _) | (_, Type::Other) => Type::Other,
            (Type::Bool, Type::Bool) => Type::Bool,
            _ => Type::Any,
        };
        Ok(Part::of(kind))
    }

    /// `||` over `&&` over comparisons.
    fn logic(&mut self, depth: usize, signs: &[&'static str]) -> Parsed {
        let or = signs == ["||"];
        let next = |parser: &mut Self| if or { parser.logic(depth, &["&&"]) } else { parser.relation(depth) };
        let mut first = next(self)?;
        while self.one_of(signs)?.is_some() {
            self.widen()?;
            must_be_bool(&first, "one side of `&&` or `||`")?;
            must_be_bool(&next(self)?, "one side of `&&` or `||`")?;
            first = Part::of(Type::Bool);
        }
        Ok(first)
    }

    fn relation(&mut self, depth: usize) -> Parsed {
        let first = self.sum(depth, true)?;
        let word = |token: &Option<Token>| matches!(token, Some(Token::Name(name)) if name == "in");
        if self.one_of(&["<=", ">=", "==", "!=", "<", ">"])?.is_some() {
            self.sum(depth, true)?;
        } else if word(&self.peek()?) {
            self.tokens.next();
            self.sum(depth, true)?;
        } else {
            return Ok(first);
        }
        // Envoy could compare what was compared, but nobody means that.
        if self.one_of(&["<=", ">=", "==", "!=", "<", ">"])?.is_some() || word(&self.peek()?) {
            return Err("comparisons in a row: use && or parentheses".to_owned());
        }
        Ok(Part::of(Type::Bool))
    }

    /// `+ -` over `* / %`.
    fn sum(&mut self, mut depth: usize, add: bool) -> Parsed {
        let signs: &[&'static str] = if add { &["+", "-"] } else { &["*", "/", "%"] };
        let next =
            |parser: &mut Self, depth| if add { parser.sum(depth, false) } else { parser.unary(depth) };
        let mut first = next(self, depth)?;
        while self.one_of(signs)?.is_some() {
            depth = deeper(depth)?;
            next(self, depth)?;
            first = Part::of(Type::Other);
        }
        Ok(first)
    }

    fn unary(&mut self, depth: usize) -> Parsed {
        if self.eat("!")? {
            let part = self.unary(deeper(depth)?)?;
            must_be_bool(&part, "what is behind `!`")?;
            return Ok(Part::of(Type::Bool));
        }
        if self.eat("-")? {
            self.unary(deeper(depth)?)?;
            return Ok(Part::of(Type::Other));
        }
        self.member(depth)
    }

    /// A value and what is selected of it or called on it.
    fn member(&mut self, depth: usize) -> Parsed {
        let mut part = self.primary(depth)?;
        let mut links = 0;
        loop {
            if self.eat(".")? {
                let name = self.name()?;
                part = if self.eat("(")? {
                    self.call(METHODS, &name, depth)?
                } else {
                    Part { kind: Type::Any, field: true }
                };
            } else if self.eat("[")? {
                self.expression(depth)?;
                self.expect("]")?;
                part = Part::of(Type::Any);
            } else {
                return Ok(part);
            }
            links += 1;
            if links > MAX_DEPTH {
                return Err(format!("more than {MAX_DEPTH} steps into one value"));
            }
        }
    }

    fn primary(&mut self, depth: usize) -> Parsed {
        match self.tokens.next().transpose()? {
            Some(Token::Number | Token::Text) => Ok(Part::of(Type::Other)),
            Some(Token::Sign("(")) => {
                let part = self.expression(depth)?;
                self.expect(")")?;
                Ok(part)
            }
            Some(Token::Sign("[")) => {
                self.list("]", depth)?;
                Ok(Part::of(Type::Other))
            }
            Some(Token::Name(name)) => self.named(&name, depth),
            Some(token) => Err(format!("unexpected {token}")),
            None => Err("something is missing at the end".to_owned()),
        }
    }

    fn named(&mut self, name: &str, depth: usize) -> Parsed {
        match name {
            "true" | "false" => return Ok(Part::of(Type::Bool)),
            "null" => return Ok(Part::of(Type::Other)),
            _ => {}
        }
        if self.eat("(")? {
            if name == "has" {
                let asked = self.expression(depth)?;
                self.expect(")")?;
                return match asked.field {
                    true => Ok(Part::of(Type::Bool)),
                    false => Err("`has` asks for a field, as in has(response.code)".to_owned()),
                };
            }
            return self.call(FUNCTIONS, name, depth);
        }
        let known = ATTRIBUTES.iter().find(|(root, _)| *root == name);
        let Some((_, fields)) = known else {
            let roots: Vec<_> = ATTRIBUTES.iter().map(|(root, _)| *root).collect();
            return Err(format!("`{name}` is nothing that Envoy knows of a request: {}", roots.join(", ")));
        };
        if fields.is_empty() {
            return Ok(Part::of(Type::Other));
        }
        let field = if self.eat(".")? {
            self.name()?
        } else {
            return Err(format!("`{name}` alone says nothing: one of {}", fields.join(", ")));
        };
        if !fields.contains(&field.as_str()) {
            return Err(format!("`{name}.{field}` is not known to Envoy: {name} has {}", fields.join(", ")));
        }
        Ok(Part { kind: Type::Any, field: true })
    }

    /// A function whose parenthesis is open.
    fn call(&mut self, known: &[(&str, usize)], name: &str, depth: usize) -> Parsed {
        let given = self.list(")", depth)?;
        match known.iter().find(|(function, _)| *function == name) {
            Some((_, wanted)) if *wanted == given => {}
            Some((_, wanted)) => return Err(format!("`{name}` takes {wanted} arguments, not {given}")),
            None => {
                let names: Vec<_> = known.iter().map(|(function, _)| *function).collect();
                return Err(format!("there is no function `{name}` here; there are {}", names.join(", ")));
            }
        }
        let bool = ["contains", "startsWith", "endsWith"].contains(&name);
        Ok(Part::of(if bool { Type::Bool } else { Type::Other }))
    }

    /// Expressions up to `end`; how many.
    fn list(&mut self, end: &str, depth: usize) -> Result<usize, String> {
        let mut count = 0;
        if self.eat(end)? {
            return Ok(count);
        }
        loop {
            self.widen()?;
            self.expression(depth)?;
            count += 1;
            if !self.eat(",")? {
                self.expect(end)?;
                return Ok(count);
            }
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.next().transpose()? {
            Some(Token::Name(name)) => Ok(name),
            Some(token) => Err(format!("unexpected {token}: a name is missing")),
            None => Err("a name is missing at the end".to_owned()),
        }
    }
}

fn deeper(depth: usize) -> Result<usize, String> {
    if depth >= MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} levels within one another"));
    }
    Ok(depth + 1)
}

fn must_be_bool(part: &Part, what: &str) -> Result<(), String> {
    match part.kind {
        Type::Bool | Type::Any => Ok(()),
        Type::Other => Err(format!("{what} is neither true nor false")),
    }
}

#[cfg(test)]
mod tests;
