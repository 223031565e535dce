//! Which command is working on a VM, so that the next one can name it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use time::OffsetDateTime;
use time::macros::format_description;

tokio::task_local! {
    static CALLER: String;
}

/// Runs `work` on behalf of a caller, named for people: "recovery-export by user 0 (process 4711)".
pub(crate) async fn in_the_name_of<T>(caller: String, work: impl Future<Output = T>) -> T {
    CALLER.scope(caller, work).await
}

/// The caller on whose behalf this task runs.
pub(crate) fn caller() -> String {
    CALLER.try_with(Clone::clone).unwrap_or_else(|_| "the agent itself".into())
}

/// The VMs that a command is working on.
#[derive(Clone, Default)]
pub(crate) struct Holders(Arc<Mutex<HashMap<String, String>>>);

impl Holders {
    /// Notes that this task's caller is working on the VM, until the value is dropped.
    pub(crate) fn enter(&self, vm: &str) -> Held {
        let caller = caller();
        let now = OffsetDateTime::now_utc();
        let since = now.format(format_description!("[hour]:[minute]:[second] UTC")).unwrap_or_default();
        self.lock().insert(vm.to_owned(), format!("{caller}, since {since}"));
        Held { holders: self.clone(), vm: vm.to_owned() }
    }

    pub(crate) fn who(&self, vm: &str) -> String {
        self.lock().get(vm).cloned().unwrap_or_else(|| "another command".into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command is working on a VM as long as this lives.
pub(crate) struct Held {
    holders: Holders,
    vm: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holders.lock().remove(&self.vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_holder_is_named_until_it_lets_go() {
        let holders = Holders::default();
        let held = in_the_name_of("vm-start by user 7 (process 9)".into(), async { holders.enter("dvm") }).await;
        assert!(holders.who("dvm").starts_with("vm-start by user 7 (process 9), since "));
        drop(held);
        assert_eq!(holders.who("dvm"), "another command");
    }
}
