//! The edge at which a panic stops: a bug that one object sets off must not take the others' policy away (design
//! decision 5). Decides nothing about what to do instead; callers keep their last good value.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panicked(pub(crate) String);

/// Runs `work` for `subject`. What `work` changed in its captures before a panic stays changed: it should only read,
/// or fill memories in which a half-done step is harmless.
pub(crate) fn guarded<T>(subject: &dyn std::fmt::Display, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let message = text(&*payload);
        tracing::error!(%subject, panic = %message, "a bug: translation failed, its last good version stays in force");
        Panicked(message)
    })
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_text() {
        assert_eq!(guarded(&"a", || 1), Ok(1));
        assert_eq!(guarded::<()>(&"a", || panic!("static")), Err(Panicked("static".into())));
        assert_eq!(guarded::<()>(&"a", || panic!("number {}", 7)), Err(Panicked("number 7".into())));
    }
}
