//! Commands that speak to one holder, one grantor, one fence.

use crate::words::Words;
use cluster_core::control::Reign;
use cluster_core::ids::*;
use cluster_core::lease::*;
use cluster_core::rebalance::NodeView;

#[derive(Default)]
pub struct Leases {
    terms: LeaseTerms,
    holder: HeldLease,
    grantor: Option<Grantor>,
    fence: TokenFence,
}

const SOURCE: SourceId = SourceId(1);

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

impl Leases {
    /// `None`: not a command of leases.
    pub fn run(&mut self, words: &Words) -> Option<String> {
        self.holders(words).or_else(|| self.grantors(words))
    }

    fn holders(&mut self, words: &Words) -> Option<String> {
        let now = || words.get("now");
        Some(match words.name {
            "granted" => {
                let epoch = LeaseEpoch(words.get("epoch"));
                let ttl_ms = self.terms.ttl_ms;
                let done = self.holder.granted(epoch, words.get("sent"), ttl_ms, now());
                format!("{done:?}").to_lowercase()
            }
            "held" => yes(self.holder.is_held(now())),
            "epoch" => format!("epoch {}", self.holder.epoch()),
            "request" => {
                let epoch = LeaseEpoch(words.get("epoch"));
                let found = self.holder.admit(epoch, now(), self.terms.epoch_grace_ms);
                let answer = match found.standing {
                    Standing::Held => "served",
                    Standing::Lapsed => "ESTALE: no lease",
                    Standing::StaleRequest => "ESTALE: the request's epoch is over",
                };
                let renews = if found.renews_at_once {
                    ", renews at once"
                } else {
                    ""
                };
                format!("{answer}{renews}")
            }
            "token" => match self.fence.offer(ConsumerEpoch(words.get("offer"))) {
                Offer::Old { installed } => format!("refused: {installed} is installed"),
                Offer::Known => "known".to_owned(),
                Offer::New => "new: write, then install".to_owned(),
            },
            "install" => {
                self.fence.install(ConsumerEpoch(words.get("token")));
                format!("installed {}", self.fence.installed())
            }
            _ => return None,
        })
    }

    fn grantors(&mut self, words: &Words) -> Option<String> {
        if words.name == "reign" {
            let epoch = words.get("epoch");
            let reign = Reign {
                term: epoch,
                leader: 1,
                start: 1,
            };
            self.grantor = Some(Grantor::begin(self.terms, reign, LeaseEpoch(epoch)));
            return Some(format!("epoch {epoch} reigns; its time counts from 0"));
        }
        let grantor = self.grantor.as_mut()?;
        let now = || words.get("now");
        let node = || NodeId(words.get("node"));
        let stamp = |key| (LeaseEpoch(words.get("epoch")), MapVersion(words.get(key)));
        let token = ConsumerEpoch(1);
        Some(match words.name {
            "round" => {
                grantor.confirmed(words.get("begun"));
                "a quorum confirms the reign".to_owned()
            }
            "renew" => match words.number("consumer") {
                Some(id) => {
                    let renewed = grantor.renew_consumer(ConsumerId(id), words.get("received"));
                    match renewed {
                        Err(Unconfirmed) => "not granted: no round since".to_owned(),
                        Ok(taken) if taken.contains_key(&SOURCE) => {
                            "granted, without source-1".to_owned()
                        }
                        Ok(_) => "granted".to_owned(),
                    }
                }
                None => {
                    let knows = stamp("map");
                    match grantor.renew_node(node(), words.get("received"), knows) {
                        Err(Unconfirmed) => "not granted: no round since".to_owned(),
                        Ok(()) => "granted".to_owned(),
                    }
                }
            },
            "take" => {
                let holder = words.number("from").map(ConsumerId);
                match grantor.begin_handover(SOURCE, holder, token, now()) {
                    true => "may be given away".to_owned(),
                    false => "its lease may still run".to_owned(),
                }
            }
            "recall" => {
                grantor.recall(SOURCE, token);
                "its renewals leave it out".to_owned()
            }
            "unrecall" => {
                grantor.end_recall(SOURCE);
                "the holder may keep it".to_owned()
            }
            "released" => {
                grantor.released(SOURCE, ConsumerEpoch(words.get("token")));
                "the holder says so".to_owned()
            }
            "refused" => {
                grantor.end_handover(SOURCE);
                "the holder keeps it".to_owned()
            }
            "live" => yes(grantor.is_live(ConsumerId(words.get("consumer")), now())),
            "let_go" => {
                let view = NodeView::of(node(), grantor, now());
                let terms = grantor.terms();
                yes(terms.has_let_go(view.map, view.silent_ms, stamp("since")))
            }
            _ => return None,
        })
    }
}
