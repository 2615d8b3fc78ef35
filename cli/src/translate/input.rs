//! The files of commands that need no control plane, read as the control plane reads them; what is wrong goes to stderr as
//! compilers print it.

use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context, Result, bail};
use crds::{Content, Document, Finding, Object, Severity};
use mesh::MeshConfig;
use source::{Change, UnimplementedObjects};

/// What the files say.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) mesh: MeshConfig,
    /// Closed values included.
    pub(crate) objects: Vec<Object>,
    /// Where each of them is, `FILE:LINE`.
    pub(crate) origins: Vec<String>,
    /// What is wrong, each with where; for who does not want it on stderr.
    pub(crate) findings: Option<Vec<(String, Finding)>>,
    /// Nothing had to be read as closed.
    pub(crate) understood: bool,
}

/// # Errors
/// If a file cannot be read at all, or the mesh configuration is wrong.
pub(crate) fn read(path: &Path, mesh_config: Option<&Path>) -> Result<Input> {
    let mut input = Input::with(mesh_config)?;
    input.add(path)?;
    Ok(input)
}

fn mesh(path: &Path) -> Result<MeshConfig> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let origin = path.display().to_string();
    match crds::mesh_config::read(&text) {
        Ok((mesh, findings)) => {
            report(&origin, &findings);
            Ok(mesh)
        }
        Err(findings) => {
            report(&origin, &findings);
            bail!("{origin} is no mesh configuration")
        }
    }
}

impl Input {
    /// Nothing yet but the mesh configuration.
    ///
    /// # Errors
    /// If that is wrong.
    pub(crate) fn with(mesh_config: Option<&Path>) -> Result<Self> {
        let mesh = mesh_config.map(mesh).transpose()?.unwrap_or_default();
        Ok(Self { mesh, objects: Vec::new(), origins: Vec::new(), findings: None, understood: true })
    }

    /// Reads one more file or folder.
    ///
    /// # Errors
    /// If it cannot be read at all.
    pub(crate) fn add(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            source::files::load(path, None).into_iter().for_each(|change| self.change(change));
            return Ok(());
        }
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().take(crds::MAX_FILE as u64 + 1).read_to_string(&mut text)?;
            text
        } else {
            std::fs::read_to_string(path).with_context(|| path.display().to_string())?
        };
        self.text(&text, &path.display().to_string());
        Ok(())
    }

    /// Reads the text of a file of this name.
    pub(crate) fn text(&mut self, text: &str, origin: &str) {
        crds::read(text, origin).into_iter().for_each(|document| self.document(document));
    }

    /// Takes over what a source tells.
    pub(crate) fn change(&mut self, change: Change) {
        match change {
            Change::Apply { object, origin, version: _, findings } => {
                self.found(&origin, &findings);
                self.objects.push(*object);
                self.origins.push(origin);
            }
            Change::Kept { object: _, origin, version: _, findings } => self.found(&origin, &findings),
            Change::Unreadable { origin, finding, blocks_ready: _ } => {
                self.found(&origin, finding.as_slice());
            }
            Change::Frozen(reason) => {
                let finding = reason.map(Finding::error);
                self.found("", finding.as_slice());
            }
            Change::Unimplemented(objects) => self.unimplemented(&objects),
            Change::Delete(_) | Change::Mesh(_) | Change::Synced => {}
        }
    }

    /// Only for who asks for findings: a cluster is full of what has nothing to do with the question.
    fn unimplemented(&mut self, objects: &UnimplementedObjects) {
        let UnimplementedObjects { group, kind, count, names, error: _ } = objects;
        let Some(findings) = self.findings.as_mut().filter(|_| *count > 0) else { return };
        let message = format!("{count} {kind} of {group} have no effect here: {}", names.join(", "));
        let field = "kind".to_owned();
        let finding = Finding { severity: Severity::Warning, field, message, line: None, column: None };
        findings.push(("kubernetes".to_owned(), finding));
    }

    fn document(&mut self, Document { origin, content, findings }: Document) {
        self.found(&origin, &findings);
        match content {
            Content::Object(object) => {
                self.objects.push(*object);
                self.origins.push(origin);
            }
            Content::Invalid { object: _, closed } => {
                if let Some(closed) = closed {
                    self.objects.push(*closed.object);
                    self.origins.push(origin);
                }
            }
            Content::Unreadable | Content::Unsupported => {}
        }
    }

    fn found(&mut self, origin: &str, findings: &[Finding]) {
        match &mut self.findings {
            Some(all) => all.extend(findings.iter().map(|finding| (origin.to_owned(), finding.clone()))),
            None => report(origin, findings),
        }
        self.understood &= findings.iter().all(|finding| finding.severity < Severity::Error);
    }
}

/// `FILE:LINE:COLUMN: severity: field: message`.
fn report(origin: &str, findings: &[Finding]) {
    let mut stderr = std::io::stderr().lock();
    for finding in findings {
        let finding = controller::status::FindingStatus::from(finding);
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(stderr, "{}", crate::status::line(origin, &finding));
    }
}
