//! Who is who in the shop, and the files that say so.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

/// A workload of the shop: what the templates say, as far as it must be known to start it.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    pub(super) namespace: &'static str,
    pub(super) account: &'static str,
    /// The last byte of its address.
    host: u8,
    /// The application's ports and what it speaks there.
    pub(super) serves: &'static [(u16, &'static str)],
    /// What the application asks the next one for GET requests below a prefix.
    pub(super) next: Option<(&'static str, &'static str)>,
}

impl Workload {
    pub(super) fn spiffe_id(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.account)
    }
}

/// The workload of that name.
pub(super) fn find(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|workload| workload.name == name)
}

/// The port on which each Envoy forwards its own application's HTTP requests.
pub(super) const FORWARD: u16 = 15001;
/// The local ports through which applications reach the database's two ports.
pub(super) const DATABASE: [(u16, u16); 2] = [(5432, 25432), (5433, 25433)];

pub(super) const WORKLOADS: [Workload; 7] = [
    Workload { name: "user", namespace: "edge", account: "user", host: 10, serves: &[], next: None },
    Workload {
        name: "gateway",
        namespace: "edge",
        account: "gateway",
        host: 11,
        serves: &[(8080, "http")],
        next: Some(("/shop/orders/", "http://orders.default:8080/orders/")),
    },
    Workload {
        name: "orders",
        namespace: "default",
        account: "orders",
        host: 12,
        serves: &[(8080, "http")],
        next: Some(("/orders/", "http://inventory.stock:8080/stock/")),
    },
    Workload {
        name: "payment",
        namespace: "default",
        account: "payment-service",
        host: 13,
        serves: &[(9090, "grpc")],
        next: None,
    },
    Workload {
        name: "inventory",
        namespace: "stock",
        account: "inventory",
        host: 14,
        serves: &[(8080, "http"), (9090, "grpc")],
        next: Some(("/stock/", "tcp://127.7.7.14:25432")),
    },
    Workload {
        name: "database",
        namespace: "stock",
        account: "database",
        host: 15,
        serves: &[(5432, "tcp"), (5433, "tcp")],
        next: None,
    },
    Workload { name: "intruder", namespace: "guest", account: "intruder", host: 16, serves: &[], next: None },
];

/// Every file of the watched folder: its path there, and its text.
const FILES: [(&str, &str); 11] = [
    ("workloads.yaml", include_str!("../../demo/shop/workloads.yaml")),
    ("services.yaml", include_str!("../../demo/shop/services.yaml")),
    ("policies/mesh-strict.yaml", include_str!("../../demo/shop/policies/mesh-strict.yaml")),
    ("policies/deny-by-default.yaml", include_str!("../../demo/shop/policies/deny-by-default.yaml")),
    ("policies/orders-policy.yaml", include_str!("../../demo/shop/policies/orders-policy.yaml")),
    ("policies/orders-read.yaml", include_str!("../../demo/shop/policies/orders-read.yaml")),
    ("policies/gateway.yaml", include_str!("../../demo/shop/policies/gateway.yaml")),
    ("policies/login.yaml", include_str!("../../demo/shop/policies/login.yaml")),
    ("policies/inventory.yaml", include_str!("../../demo/shop/policies/inventory.yaml")),
    ("policies/payment.yaml", include_str!("../../demo/shop/policies/payment.yaml")),
    ("policies/database.yaml", include_str!("../../demo/shop/policies/database.yaml")),
];
const MESH_CONFIG: &str = include_str!("../../demo/mesh-config.yaml");
/// A port of the control plane's address on which nothing is served.
const RESERVED: u16 = 15019;
/// The network in the templates; replaced where another demo already uses it.
const TEMPLATE_NETWORK: &str = "127.7.7.";

/// A written shop: its folder and the loopback network it lives on.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    pub(super) folder: PathBuf,
    network: [u8; 3],
    /// Keeps other demos out of the network.
    _held: Arc<TcpListener>,
}

impl Shop {
    /// Writes the shop's files into `folder` for a free loopback network.
    ///
    /// # Errors
    /// If the folder cannot be written, or every network is taken.
    pub(super) fn write(folder: &Path, jwks: &str) -> Result<Self> {
        let free = (7..=250).find_map(|third| reserve([127, 7, third]).map(|held| ([127, 7, third], held)));
        let (network, held) = free.context("all loopback networks are in use")?;
        let shop = Self { folder: folder.to_owned(), network, _held: Arc::new(held) };
        for private in ["state", "run", "logs"] {
            std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
                .recursive(true)
                .create(folder.join(private))?;
        }
        std::fs::create_dir_all(shop.files().join("policies"))?;
        for (path, text) in FILES {
            std::fs::write(shop.files().join(path), shop.fill(text).replace("@JWKS@", jwks))?;
        }
        std::fs::write(shop.mesh_config(), MESH_CONFIG)?;
        Ok(shop)
    }

    fn fill(&self, text: &str) -> String {
        let [a, b, c] = self.network;
        text.replace(TEMPLATE_NETWORK, &format!("{a}.{b}.{c}."))
    }

    /// The folder that the control plane watches.
    pub(super) fn files(&self) -> PathBuf {
        self.folder.join("shop")
    }

    pub(super) fn mesh_config(&self) -> PathBuf {
        self.folder.join("mesh-config.yaml")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// A workload's own folder: sockets, the agent's state.
    pub(super) fn run(&self, workload: &Workload) -> PathBuf {
        self.folder.join("run").join(workload.name)
    }

    /// The access log of a workload's Envoy.
    pub(super) fn access_log(&self, workload: &str) -> PathBuf {
        self.logs().join(format!("{workload}-envoy.log"))
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.network;
        Ipv4Addr::new(a, b, c, host)
    }

    /// An address of the control plane.
    pub(super) fn control(&self, port: u16) -> SocketAddr {
        (self.address(1), port).into()
    }

    /// # Panics
    /// If there is no such workload.
    pub(super) fn on(&self, workload: &str, port: u16) -> SocketAddr {
        let workload = find(workload).expect("a workload of the shop");
        (self.address(workload.host), port).into()
    }

    /// The command line of a workload's application; `None` for one that only calls.
    pub(super) fn app_args(&self, workload: &Workload) -> Option<Vec<String>> {
        if workload.serves.is_empty() {
            return None;
        }
        let mut args: Vec<String> = ["demo-app", "--name", workload.name].map(str::to_owned).into();
        for (port, protocol) in workload.serves {
            args.extend([
                "--listen".to_owned(),
                format!("{protocol}=unix:{}", self.socket(workload, *port).display()),
            ]);
        }
        if let Some((prefix, url)) = workload.next {
            args.extend(["--next".to_owned(), self.fill(&format!("{prefix}={url}"))]);
            args.extend(["--proxy".to_owned(), self.on(workload.name, FORWARD).to_string()]);
        }
        Some(args)
    }

    /// The socket on which a workload's application serves one of its ports.
    pub(super) fn socket(&self, workload: &Workload, port: u16) -> PathBuf {
        self.run(workload).join("app").join(port.to_string())
    }
}

/// A network that is nobody else's: the holder of this listener has it.
fn reserve([a, b, c]: [u8; 3]) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::new(a, b, c, 1), RESERVED)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_written_for_a_free_network_and_hold_no_placeholder() {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.7.7.1:15019");
        let shop = Shop::write(folder.path(), r#"{"keys":[]}"#).unwrap();
        let text = |path: &str| std::fs::read_to_string(shop.files().join(path)).unwrap();
        for (path, _) in FILES {
            assert!(!text(path).contains('@'), "{path}");
            assert!(taken.is_err() || !text(path).contains(TEMPLATE_NETWORK), "{path}");
        }
        let orders = shop.on("orders", 8080);
        assert!(text("workloads.yaml").contains(&orders.ip().to_string()));
        let args = shop.app_args(&WORKLOADS[4]).unwrap().join(" ");
        assert!(args.contains(&format!("tcp://{}", shop.on("inventory", DATABASE[0].1))), "{args}");
    }

    /// The policy that the project promises to enforce, as it stands in the documentation.
    #[test]
    fn the_orders_policy_is_the_documented_one() {
        let (_, text) = FILES.iter().find(|(path, _)| path.ends_with("orders-policy.yaml")).unwrap();
        assert!(text.contains("principals: [\"cluster.local/ns/default/sa/payment-service\"]"));
        assert!(text.contains("paths: [\"/orders/*\"]") && !text.contains("selector"));
    }
}
