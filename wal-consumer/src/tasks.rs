//! The tasks of one run: spawned anywhere, waited for at its end.

use parking_lot::Mutex;
use std::sync::Arc;
use tokio::task::JoinHandle;

#[derive(Clone, Default)]
pub struct Tasks {
    handles: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Tasks {
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut handles = self.handles.lock();
        handles.retain(|handle| !handle.is_finished());
        handles.push(tokio::spawn(work));
    }

    /// Until all have ended; whoever calls has told them to.
    pub async fn wait(&self) {
        loop {
            let Some(handle) = self.handles.lock().pop() else {
                return;
            };
            if let Err(problem) = handle.await {
                tracing::error!(%problem, "a task failed");
            }
        }
    }
}
