//! Coordinators in one test process, over loopback gRPC. Each has a runtime of
//! its own; dropping that runtime is as near to a crash as one process gets.
// Each test binary uses a part.
#![allow(dead_code, unused_macros)]

/// `client.leader(..)` for a request that is cloned per attempt.
macro_rules! lead {
    ($client:expr, $method:ident, $request:expr) => {{
        let request = $request;
        $client
            .leader(|mut c| {
                let request = request.clone();
                async move { c.$method(request).await }
            })
            .await
    }};
}

pub mod calls;

use cluster_client::{ClientConfig, ClusterClient};
use cluster_core::control::CoordinatorMember;
use cluster_core::lease::LeaseTerms;
use coordinator::{Config, RaftTuning};
use prometheus_client::registry::Registry;
use proto::v1;
use std::net::TcpListener;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Process {
    config: Config,
    running: Option<(Runtime, CancellationToken)>,
}

pub struct Cluster {
    pub processes: Vec<Process>,
    leases: LeaseTerms,
    dirs: Vec<TempDir>,
}

/// Ports that were free a moment ago.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    listeners
        .iter()
        .map(|l| l.local_addr().unwrap().port())
        .collect()
}

impl Cluster {
    pub fn start(count: usize, leases: LeaseTerms) -> Self {
        let members: Vec<_> = free_ports(count)
            .into_iter()
            .zip(1..)
            .map(|(port, id)| CoordinatorMember {
                id,
                address: format!("127.0.0.1:{port}"),
            })
            .collect();
        let dirs: Vec<_> = (0..count).map(|_| TempDir::new().unwrap()).collect();
        let mut processes: Vec<_> = members
            .iter()
            .zip(&dirs)
            .map(|(member, dir)| Process::new(member, dir, members.clone(), leases))
            .collect();
        for process in &mut processes {
            process.start();
        }
        Self {
            processes,
            leases,
            dirs,
        }
    }

    /// One more process, on an empty disk, that knows no other and that no other
    /// knows. Answers its address.
    pub fn start_stranger(&mut self, id: u64) -> String {
        let member = CoordinatorMember {
            id,
            address: format!("127.0.0.1:{}", free_ports(1)[0]),
        };
        let dir = TempDir::new().unwrap();
        let mut process = Process::new(&member, &dir, Vec::new(), self.leases);
        process.start();
        self.processes.push(process);
        self.dirs.push(dir);
        member.address
    }

    /// As when a disk is lost, and the process started again in its place.
    pub fn restart_on_an_empty_disk(&mut self, position: usize) {
        let process = &mut self.processes[position];
        process.kill();
        std::fs::remove_dir_all(&process.config.data_dir).unwrap();
        process.start();
    }

    pub fn address_of(&self, id: u64) -> String {
        let mut processes = self.processes.iter();
        let process = processes.find(|p| p.config.id == id).unwrap();
        process.config.listen.clone()
    }

    pub fn addresses(&self) -> Vec<String> {
        self.processes
            .iter()
            .map(|p| p.config.listen.clone())
            .collect()
    }

    /// A client of its own runtime's making is of no use elsewhere: call within
    /// the runtime that will use it.
    pub fn client(&self) -> ClusterClient {
        ClusterClient::new(ClientConfig {
            coordinators: self.addresses(),
            call_timeout: PATIENCE,
            ..ClientConfig::default()
        })
    }

    pub async fn initialise(&self) -> String {
        let client = self.client();
        let request = v1::InitialiseRequest::default();
        let answer = client
            .leader(|mut c| {
                let request = request.clone();
                async move { c.initialise(request).await }
            })
            .await
            .unwrap();
        answer.cluster_id
    }

    /// The position of the reigning leader among the processes.
    pub async fn leader(&self) -> usize {
        let client = self.client();
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            for (i, address) in self.addresses().iter().enumerate() {
                let status = status(&client, address).await;
                if status.is_ok_and(|s| s.leader_id == s.coordinator_id) {
                    return i;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no leader in time");
    }
}

pub async fn status(
    client: &ClusterClient,
    address: &str,
) -> Result<v1::GetStatusResponse, Status> {
    let mut coordinator = client.coordinator(address).unwrap();
    let answer = within(coordinator.get_status(v1::GetStatusRequest {})).await?;
    Ok(answer.into_inner())
}

/// An attempt that may hang when its server is gone.
pub async fn within<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let attempt = tokio::time::timeout(Duration::from_secs(5), call).await;
    attempt.unwrap_or_else(|_| Err(Status::deadline_exceeded("the test's own deadline")))
}

impl Process {
    fn new(
        member: &CoordinatorMember,
        dir: &TempDir,
        peers: Vec<CoordinatorMember>,
        leases: LeaseTerms,
    ) -> Self {
        Self {
            config: Config {
                id: member.id,
                listen: member.address.clone(),
                data_dir: dir.path().to_owned(),
                peers,
                leases,
                duties_every_ms: 50,
                replication_factor: 2,
                // Loaded test machines: an election is no failure, but slow.
                raft: RaftTuning {
                    heartbeat_ms: 150,
                    ..RaftTuning::default()
                },
                ..Config::default()
            },
            running: None,
        }
    }

    pub fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let give_up = Instant::now() + PATIENCE;
        // The former incarnation may still be letting go of its disk and port.
        let shutdown = loop {
            let shutdown = CancellationToken::new();
            let mut registry = Registry::default();
            let started = coordinator::start(self.config.clone(), &mut registry, shutdown.clone());
            match runtime.handle().block_on_anywhere(started) {
                Ok(_handle) => break shutdown,
                Err(error) if Instant::now() > give_up => panic!("cannot start: {error:#}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        self.running = Some((runtime, shutdown));
    }

    /// Drops every task where it stands. A write that has reached RocksDB ends
    /// first: at the end of the test process it would meet destroyed locks.
    pub fn kill(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            let stop = std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE));
            stop.join().unwrap();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `block_on` for tests that are async themselves: on a thread of its own.
trait BlockOnAnywhere {
    fn block_on_anywhere<T: Send>(&self, future: impl Future<Output = T> + Send) -> T;
}

impl BlockOnAnywhere for tokio::runtime::Handle {
    fn block_on_anywhere<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.block_on(future)).join().unwrap())
    }
}
