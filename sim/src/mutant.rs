//! Guards that a run can be told to break, to prove that the checks would see
//! it: a simulator that finds nothing may be one that looks at nothing.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A replica applies every batch, whatever its watermark says.
    ApplyWithoutAdmit,
    /// The slot does not wait for the replicas on one node.
    ConfirmIgnoringNode,
    /// A node does not look at its lease before it answers.
    AnswerWithoutLease,
    /// A node whose lease came back after a gap answers by the map of before.
    AnswerOnOldMap,
    /// A removal leaves no tombstone while a backfill is open.
    TombstoneDropped,
    /// The consumer counts a learner that has logged, and not copied.
    LearnerCountedEarly,
    /// The consumer counts a learner that stands below what is confirmed.
    LearnerCountedBelow,
    /// A half of a split is promoted before the slot waits for it.
    HalfPromotedUncounted,
    /// What goes to a partition that is being split does not go to its halves.
    HalvesUnfed,
    /// A node acknowledges before its disk has synced.
    AckBeforeSync,
    /// "Nothing else" moves replicas that the stream does not feed.
    NothingElseToUnfed,
    /// A leader grants without asking its quorum.
    GrantWithoutQuorum,
    /// A release ends although its node may still answer.
    ReleaseWithoutWaiting,
    /// Former versions go as soon as they have ended.
    FormersDropped,
}

impl Mutant {
    pub const ALL: [Mutant; 14] = [
        Mutant::ApplyWithoutAdmit,
        Mutant::ConfirmIgnoringNode,
        Mutant::AnswerWithoutLease,
        Mutant::AnswerOnOldMap,
        Mutant::TombstoneDropped,
        Mutant::LearnerCountedEarly,
        Mutant::LearnerCountedBelow,
        Mutant::HalfPromotedUncounted,
        Mutant::HalvesUnfed,
        Mutant::AckBeforeSync,
        Mutant::NothingElseToUnfed,
        Mutant::GrantWithoutQuorum,
        Mutant::ReleaseWithoutWaiting,
        Mutant::FormersDropped,
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        let named = |m: &Mutant| format!("{m:?}").eq_ignore_ascii_case(&name.replace('-', ""));
        Self::ALL.into_iter().find(named)
    }
}
