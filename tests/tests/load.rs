//! The load driver against the control plane, with events counted: who gets how many responses for what, and that peers
//! without manners cost nobody else anything. No times are asserted.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bench::load::change::Change;
use bench::load::mesh::Size;
use bench::load::plane::{Ours, Source};
use bench::load::proxy::Variant;
use bench::load::run::{Plane, Run, Settings, create};
use bench::load::store::Store;
use tests::here;
use tests::lab::{kube, programs};

/// Five services of four pods: twenty sidecars.
fn settings() -> Settings {
    let size = Size { services: 5, pods: 4, policies: 5, idle_policies: 2, namespaces: 1, narrowed: false };
    Settings {
        size,
        streams: 20,
        quiet: Duration::from_millis(200),
        rest: Duration::ZERO,
        repeat: 3,
        sample: 5,
        ..Settings::default()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Over a folder of its own.
async fn over_files(settings: Settings) -> Result<(Run, Source, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let (store, source) = (Store::Files(folder.path().to_owned()), Source::Files(folder.path().to_owned()));
    let run = start(settings, store, source.clone()).await?;
    Ok((run, source, folder))
}

async fn start(settings: Settings, store: Store, source: Source) -> Result<Run> {
    let mesh = create(&store, settings.size).await?;
    let mut ours = Ours::new(programs::countersign(), source, false)?;
    ours.start().await?;
    Ok(Run::new(settings, mesh, store, Plane::Ours(Box::new(ours)), None))
}

/// Everybody is served; an edit of a policy is one response for each proxy that it is about, and an edit that changes
/// nothing is none; afterwards everybody has what a control plane that starts now would give.
async fn exact(mut run: Run, source: Source) -> Result<()> {
    let connected = run.connect().await?;
    assert_eq!((connected.streams, connected.counts.retries), (20, 0));
    // Clusters, endpoints, listeners, policy, routes.
    assert_eq!(connected.counts.responses, 5 * 20);
    for (change, each) in [(Change::OneService, 4), (Change::Metadata, 0), (Change::Namespace, 20)] {
        let changed = run.change(change).await?;
        let found = (changed.counts.responses, changed.counts.resources);
        assert_eq!(found, (3 * each, 3 * each), "{}", changed.name);
    }
    let restarted = run.change(Change::Restart).await?;
    assert_eq!(restarted.counts.resources, 0, "nothing changed");
    let verified = run.verify(Some((programs::countersign().to_owned(), source))).await?;
    assert_eq!((verified.sidecars, verified.from_scratch), (5, true));
    Ok(())
}

#[test]
fn responses_are_counted_exactly_over_files() {
    runtime()
        .block_on(async {
            let (run, source, _folder) = over_files(settings()).await?;
            exact(run, source).await
        })
        .unwrap_or_else(|why: anyhow::Error| panic!("{why:?}"));
}

#[test]
fn responses_are_counted_exactly_with_an_api_server() {
    kube::own(here!(), async |kube| {
        let source = Source::Kubernetes(kube.admin_kubeconfig()?);
        let run = start(settings(), Store::Kubernetes(kube.client()), source.clone()).await?;
        exact(run, source).await
    });
}

/// State of the world: as many responses, and the same content in the end.
#[test]
fn a_sidecar_of_the_old_protocol_is_told_as_seldom() {
    runtime()
        .block_on(async {
            let settings = Settings { variant: Variant::Sotw, ..settings() };
            let (mut run, source, _folder) = over_files(settings).await?;
            run.connect().await?;
            assert_eq!(run.change(Change::OneService).await?.counts.responses, 3 * 4);
            assert_eq!(run.change(Change::Metadata).await?.counts.responses, 0);
            run.verify(Some((programs::countersign().to_owned(), source))).await?;
            anyhow::Ok(())
        })
        .unwrap_or_else(|why: anyhow::Error| panic!("{why:?}"));
}

/// Two hundred proxies beside the same pods that never read or never acknowledge: the others get every change all the same,
/// and nothing is sent or kept for those that do not answer, however much changes.
#[test]
fn who_never_answers_costs_its_own_place_and_nothing_else() {
    runtime()
        .block_on(async {
            let settings = Settings { never_ack: 100, never_read: 100, repeat: 25, ..settings() };
            let (mut run, _, _folder) = over_files(settings).await?;
            run.connect().await?;
            run.fleet.settled(Duration::from_secs(1)).await;
            // What is sent to everybody at first, the edits before the first count among it.
            run.change(Change::Namespace).await?;
            let before = pushes(&run)?;
            let changed = run.change(Change::Namespace).await?;
            // Twice before the clock starts, then as often as it is repeated: one response each, to twenty proxies.
            assert_eq!(changed.counts.responses, 25 * 20);
            let sent: BTreeMap<String, u64> = pushes(&run)?
                .into_iter()
                .map(|(kind, now)| (kind.clone(), now - before.get(&kind).unwrap_or(&0)))
                .collect();
            let wanted = [("cds", 0), ("eds", 0), ("ecds", 27 * 20), ("lds", 0), ("rds", 0)];
            assert_eq!(sent, wanted.map(|(kind, count)| (kind.to_owned(), count)).into());
            anyhow::Ok(())
        })
        .unwrap_or_else(|why: anyhow::Error| panic!("{why:?}"));
}

/// What the control plane says that it has sent, by type.
fn pushes(run: &Run) -> Result<BTreeMap<String, u64>> {
    let Plane::Ours(ours) = &run.plane else { anyhow::bail!("somebody else's control plane") };
    let metrics = ours.get("/metrics")?;
    let mut found = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("pilot_xds_pushes")) {
        let (labels, value) = line.rsplit_once(' ').context("a value")?;
        let kind = labels.split('"').nth(1).context("a label")?;
        found.insert(kind.to_owned(), value.parse::<f64>()? as u64);
    }
    ensure!(found.len() == 5, "{metrics}");
    Ok(found)
}
