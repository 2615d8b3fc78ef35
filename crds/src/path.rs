//! Where in an object a problem is: `spec.rules[0].from[0].source.principals[1]`.
//!
//! [`At`] is built on the stack while walking and costs nothing until something is reported; [`FieldPath`] is what is
//! kept. It does not know about text positions; see `read::locate`.

use std::fmt;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Key(String),
    Index(usize),
}

/// An owned path from the root of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldPath(pub(crate) Vec<Segment>);

impl FieldPath {
    /// Whether the first steps are these keys.
    pub(crate) fn starts_with(&self, keys: &[&str]) -> bool {
        self.0.len() >= keys.len()
            && keys.iter().zip(&self.0).all(|(key, step)| matches!(step, Segment::Key(k) if k == key))
    }

    /// The number after `keys`: of `["spec", "rules"]` in `spec.rules[3].to`, 3.
    pub(crate) fn index_after(&self, keys: &[&str]) -> Option<usize> {
        match self.0.get(keys.len()) {
            Some(Segment::Index(index)) if self.starts_with(keys) => Some(*index),
            _ => None,
        }
    }

    /// The steps of `prefix` followed by those of `self`.
    pub(crate) fn below(&self, prefix: &Self) -> Self {
        Self(prefix.0.iter().chain(&self.0).cloned().collect())
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if !plain(key) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if i == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
            }
        }
        Ok(())
    }
}

fn plain(key: &str) -> bool {
    !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// A place while walking: borrows its parents.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(crate) const ROOT: At<'static> = At { parent: None, step: Step::Root };

    pub(crate) fn key<'b>(&'b self, key: &'b str) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), step: Step::Key(key) }
    }

    pub(crate) fn index<'b>(&'b self, index: usize) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), step: Step::Index(index) }
    }

    pub(crate) fn path(&self) -> FieldPath {
        let mut steps = Vec::new();
        let mut at = Some(self);
        while let Some(here) = at {
            match here.step {
                Step::Root => {}
                Step::Key(key) => steps.push(Segment::Key(key.to_owned())),
                Step::Index(index) => steps.push(Segment::Index(index)),
            }
            at = here.parent;
        }
        steps.reverse();
        FieldPath(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_like_the_api_does() {
        let spec = At::ROOT.key("spec");
        let rules = spec.key("rules");
        let rule = rules.index(3);
        assert_eq!(rule.key("from").path().to_string(), "spec.rules[3].from");
        let annotations = At::ROOT.key("metadata");
        let annotations = annotations.key("annotations");
        assert_eq!(
            annotations.key("istio.io/dry-run").path().to_string(),
            r#"metadata.annotations["istio.io/dry-run"]"#
        );
        assert_eq!(rule.path().index_after(&["spec", "rules"]), Some(3));
        assert_eq!(rules.path().index_after(&["spec", "rules"]), None);
        assert!(!rules.path().starts_with(&["spec", "selector"]));
    }
}
