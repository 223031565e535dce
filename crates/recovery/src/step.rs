//! The steps of a recovery, all of them, in one table: the side that does a step, its command, the sentence with which
//! `recovery status` says where a recovery stands after it, and what undoes it.
//!
//! To add a step, add its row here, in the order in which its side does the steps, and wrap the function that does the
//! work in [`Journal::step`](crate::Journal::step). Crash points, `recovery status` and `recovery abort` follow the
//! table. A step that leaves something behind outside the recovery's directory also names the action that undoes it.
//!
//! A step's name is part of the journal's format: an older journal must stay readable, so it never changes.

use outcome::{Error, Kind};
use serde::{Deserialize, Serialize};

use Sentence::{Always, ByWay};
use Undo::{Nothing, OnGarage, OnGarageHost, OnHost};

/// Which machine a journal is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The guarded host: export, reinstate, commit and rollback.
    Host,
    /// The garage's host, where that is another one: attach and detach.
    GarageHost,
    /// The repair garage: import and finish.
    Garage,
}

impl Side {
    /// What `recovery status` says before the first step that has a sentence.
    pub(crate) fn opening(self) -> Sentence {
        match self {
            Side::Host => EXPORTING,
            Side::GarageHost => ATTACHING,
            Side::Garage => IMPORTING,
        }
    }
}

/// A sentence of `recovery status`, with `{vm}`, `{garage}` and `{file}` for the names in the journal.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sentence {
    Always(&'static str),
    /// What to do next depends on the way that the RG disk takes.
    ByWay {
        /// It stays on the host that has both VMs.
        attached: &'static str,
        /// It travels between two hosts as a file.
        carried: &'static str,
    },
}

/// What takes a step back. It may find its step not done or half done, or itself done already by an earlier run: it
/// undoes what it finds.
///
/// What a step left in the recovery's own directory needs no action: all of that goes at the end of every abort and
/// rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undo {
    Nothing,
    OnHost(HostUndo),
    OnGarageHost(GarageHostUndo),
    OnGarage(GarageUndo),
    #[cfg(test)]
    Rehearsal,
}

impl Undo {
    /// For a side that meets an action of another one, which the table does not let happen.
    pub(crate) fn elsewhere(self) -> Error {
        Error::new(Kind::Internal, format!("{self:?} undoes nothing on this side"))
    }
}

/// Undo actions on the VM's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostUndo {
    /// The VM may be started and deleted again.
    ReleaseVm,
    /// An RG disk in a file that was never completed is removed; a complete one may be in the hands of others.
    DiscardFile,
    /// The garage gives back the RG disk and the overlays.
    TakeOut,
    /// The VM as it was before its repair is in its place again.
    PutOriginalBack,
    /// The repaired VM does not run any more.
    StopRepaired,
}

/// Undo actions on the garage's host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GarageHostUndo {
    /// The garage gives back the RG disk; its file stays where it is.
    TakeOut,
}

/// Undo actions in the garage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GarageUndo {
    /// The imported VM and its logs are removed.
    RemoveVm,
    /// The recovery guardian's keys are destroyed.
    DestroyGuardian,
    /// The imported VM does not run any more.
    StopVm,
}

/// What the table says of a step on one side.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) step: Step,
    pub(crate) side: Side,
    /// The command that does it.
    pub(crate) command: &'static str,
    /// Where the recovery stands once it is done, and what comes next.
    pub(crate) sentence: Sentence,
    pub(crate) undo: Undo,
}

/// Makes the enum [`Step`], `Step::ALL` and the table out of the rows. A step that several sides do has a row for each.
macro_rules! steps {
    ($(
        $(#[$attribute:meta])*
        $step:ident { $( $side:ident by $command:literal, $sentence:expr, undo $undo:expr; )+ }
    )+) => {
        /// The steps of a recovery, on every side, in their order.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Step {
            $( $(#[$attribute])* $step, )+
        }

        #[allow(unused_doc_comments)] // a row's attributes stand before each mention of it, for its `cfg`
        impl Step {
            const COUNT: usize = [$( $(#[$attribute])* Step::$step ),+].len();

            /// All of them, in their order.
            pub const ALL: [Step; Step::COUNT] = [$( $(#[$attribute])* Step::$step ),+];
        }

        #[allow(unused_doc_comments)]
        const TABLE: [&[Row]; Step::COUNT] = [$(
            $(#[$attribute])*
            &[$(
                Row { step: Step::$step, side: Side::$side, command: $command, sentence: $sentence, undo: $undo }
            ),+]
        ),+];
    };
}

const EXPORT_AGAIN: &str =
    "the export of {vm} is not complete; run `drydock recovery export {vm} --to {garage}` again.";
const EXPORTING: Sentence = ByWay {
    attached: EXPORT_AGAIN,
    carried: "the export of {vm} is not complete; run `drydock recovery export {vm} --to-file {file}` again.",
};
const RETURNING: Sentence = ByWay {
    attached: "{vm} is on its way back; run `drydock recovery reinstate {vm}` again.",
    carried: "{vm} is on its way back; run `drydock recovery reinstate {vm} --from FILE` again.",
};
const ATTACHING: Sentence =
    Always("the RG disk of {vm} is not attached yet; run `drydock recovery attach {file} --to {garage}` again.");
const IMPORTING: Sentence = Always("the import of {vm} is not complete; run `drydock recovery import` again.");
const WAITING_FOR_GRANT: Sentence = Always(
    "{vm} is imported and waits for its owner: take the request to the tenant host, run \
     `drydock recovery grant REQUEST --owner NAME` there, and bring the grant back: \
     `drydock recovery import --grant GRANT`.",
);
const HANDING_BACK: Sentence = Always("{vm} is being handed back; run `drydock recovery finish {vm}` again.");
const ABORTED: Sentence = Always("the recovery was aborted; {vm} is as it was before.");

steps! {
    // On the VM's host.

    /// The VM cannot be started or deleted any more.
    Held {
        Host by "export", EXPORTING, undo OnHost(HostUndo::ReleaseVm);
    }
    /// The garage has nested virtualization. It keeps it after an abort.
    NestedOn {
        Host by "export", EXPORTING, undo Nothing;
    }
    /// The RG disk is complete.
    RgDiskMade {
        Host by "export", ByWay {
            attached: EXPORT_AGAIN,
            carried: "{vm} is exported to {file}; take that to the garage's host: \
                      `drydock recovery attach FILE --to VMRE` there; when its owner has finished and it is back: \
                      `drydock recovery reinstate {vm} --from FILE` here.",
        }, undo OnHost(HostUndo::DiscardFile);
    }
    /// The garage has the RG disk.
    Attached {
        Host by "export", Always(
            "{vm} is exported and attached to {garage}; its owner now runs `drydock recovery import` inside {garage}, \
             and when they have finished: `drydock recovery reinstate {vm}` here.",
        ), undo OnHost(HostUndo::TakeOut);
    }
    /// The owner has handed the VM back, and the garage does not have the RG disk any more.
    Detached {
        Host by "reinstate", RETURNING, undo Nothing;
    }
    /// Protector, receipt and state on the RG disk are what they must be.
    Verified {
        Host by "reinstate", RETURNING, undo Nothing;
    }
    /// The repaired VM is complete, next to the original.
    Copied {
        Host by "reinstate", RETURNING, undo Nothing;
    }
    /// The repaired VM is in the original's place.
    Swapped {
        Host by "reinstate", Always(
            "{vm} is back in its place but has not started; run `drydock recovery reinstate {vm}` again.",
        ), undo OnHost(HostUndo::PutOriginalBack);
    }
    /// The repaired VM has started.
    Started {
        Host by "reinstate", Always(
            "{vm} runs repaired, its changes are not merged yet; run `drydock recovery reinstate {vm}` again.",
        ), undo OnHost(HostUndo::StopRepaired);
    }
    /// The original stays until a commit or a rollback.
    Kept {
        Host by "reinstate --keep-original", Always(
            "{vm} is repaired and back, and the VM as it was before is kept; when all is well: \
             `drydock recovery commit {vm}`; to go back: `drydock recovery rollback {vm}`.",
        ), undo Nothing;
    }
    /// What the repair changed is in the original disks. From its first write on there is no way back.
    Merged {
        Host by "reinstate", Always(
            "{vm} is repaired and back; run `drydock recovery reinstate {vm}` again to close the recovery.",
        ), undo Nothing;
    }

    // On the garage's host, where that is another one.

    /// The garage has nested virtualization. It keeps it after an abort.
    GarageNested {
        GarageHost by "attach", ATTACHING, undo Nothing;
    }
    /// The garage has the RG disk.
    PluggedIn {
        GarageHost by "attach", Always(
            "{vm} is attached to {garage}; its owner now runs `drydock recovery import` inside {garage}, and when they \
             have finished: `drydock recovery detach {vm}` here.",
        ), undo OnGarageHost(GarageHostUndo::TakeOut);
    }
    /// The owner has handed the VM back, and the garage does not have the RG disk any more.
    TakenOut {
        GarageHost by "detach", Always(
            "the RG disk of {vm} is out of {garage}; run `drydock recovery detach {vm}` again.",
        ), undo Nothing;
    }

    // In the garage.

    /// The VM is in the garage's store, still sealed.
    Imported {
        Garage by "import", IMPORTING, undo OnGarage(GarageUndo::RemoveVm);
    }
    /// The recovery guardian exists.
    GuardianMade {
        Garage by "import", IMPORTING, undo OnGarage(GarageUndo::DestroyGuardian);
    }
    /// A request is ready for the owner.
    Requested {
        Garage by "import", WAITING_FOR_GRANT, undo Nothing;
    }
    /// The owner's grant opens the VM's key.
    Granted {
        Garage by "import --grant", WAITING_FOR_GRANT, undo Nothing;
    }
    /// The lowered policy is sealed under garage keys, and the VM may start.
    PolicyLowered {
        Garage by "import --grant", Always(
            "{vm} has a console here: `drydock vm start {vm}; drydock vm console {vm}`; when it is repaired: \
             `drydock recovery finish {vm}`.",
        ), undo OnGarage(GarageUndo::StopVm);
    }
    /// The raised policy is sealed under a key for the fabric.
    PolicyRaised {
        Garage by "finish", HANDING_BACK, undo Nothing;
    }
    /// State and receipt are on the RG disk.
    HandedBack {
        Garage by "finish", HANDING_BACK, undo Nothing;
    }
    /// The recovery guardian's keys and everything temporary are destroyed.
    Cleaned {
        Garage by "finish", HANDING_BACK, undo Nothing;
    }

    // The ends.

    /// The recovery has come to its end.
    Closed {
        Host by "reinstate", Always("{vm} was repaired and is back on the fabric, shielded."), undo Nothing;
        GarageHost by "detach", Always(
            "{vm} is handed back in {file}; take that to the host of {vm} and run \
             `drydock recovery reinstate {vm} --from FILE` there.",
        ), undo Nothing;
        Garage by "finish", Always(
            "{vm} is handed back and the recovery key destroyed; the fabric admin now runs \
             `drydock recovery reinstate {vm}`.",
        ), undo Nothing;
    }
    /// The recovery was given up, and its steps are undone.
    Aborted {
        Host by "abort", ABORTED, undo Nothing;
        GarageHost by "abort", Always(
            "the recovery was aborted here; the RG disk of {vm} is out of {garage} and still in {file}.",
        ), undo Nothing;
        Garage by "abort", ABORTED, undo Nothing;
    }
    /// The original that was kept is in its place again.
    RolledBack {
        Host by "rollback", Always("the recovery was rolled back; {vm} is as it was before."), undo Nothing;
    }

    /// What a later step would be: see `crate::rehearsal`.
    #[cfg(test)]
    Rehearsed {
        Host by "rehearse", Always("{vm} was rehearsed."), undo Undo::Rehearsal;
    }
}

impl Step {
    /// The command that does this step; where several do it, the one on the VM's host.
    #[must_use]
    pub fn command(self) -> &'static str {
        TABLE[self as usize][0].command
    }
}

impl std::fmt::Display for Step {
    /// The name in the journal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// The steps of one side, in their order.
pub(crate) fn of_side(side: Side) -> impl DoubleEndedIterator<Item = &'static Row> {
    TABLE.iter().flat_map(|rows| rows.iter()).filter(move |row| row.side == side)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_place_in_the_table() {
        assert!(Step::ALL.is_sorted());
        for (step, rows) in Step::ALL.into_iter().zip(TABLE) {
            assert!(!rows.is_empty() && rows.iter().all(|row| row.step == step), "{step}");
            assert!(rows.iter().enumerate().all(|(n, row)| rows[..n].iter().all(|other| other.side != row.side)));
        }
    }

    #[test]
    fn an_undo_is_one_of_its_own_side() {
        for row in TABLE.into_iter().flatten() {
            let fits = match row.undo {
                Undo::Nothing => true,
                Undo::OnHost(_) | Undo::Rehearsal => row.side == Side::Host,
                Undo::OnGarageHost(_) => row.side == Side::GarageHost,
                Undo::OnGarage(_) => row.side == Side::Garage,
            };
            assert!(fits, "{}", row.step);
        }
    }

    /// A name that changes makes journals unreadable that an earlier version wrote.
    #[test]
    fn the_names_in_journals_stay() {
        let names: Vec<String> = Step::ALL.iter().map(Step::to_string).collect();
        let written = "held nested-on rg-disk-made attached detached verified copied swapped started kept merged \
                       garage-nested plugged-in taken-out imported guardian-made requested granted policy-lowered \
                       policy-raised handed-back cleaned closed aborted rolled-back rehearsed";
        assert_eq!(names.join(" "), written);
    }
}
