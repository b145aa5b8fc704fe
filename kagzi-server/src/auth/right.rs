//! Which roles may make which calls. A call that is not listed here may be made by nobody.

use super::grant::Role;
use super::grant::Role::{Admin, Client, Operator, Worker};

/// Who may make a call, and whether it is an operator's action that is put on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) roles: &'static [Role],
    pub(crate) audited: Audited,
}

/// Whether a call is put on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audited {
    /// Before it is done, and how it ended. It is not done if it cannot be put on record.
    Announced,
    /// How it ended: it changes nothing.
    Told,
    No,
}

const LOOK: Right = Right { roles: &[Client, Operator, Admin], audited: Audited::No };
const WORK: Right = Right { roles: &[Worker, Admin], audited: Audited::No };

/// The right to make a call, by the name of its method.
pub(crate) fn right(method: &str) -> Option<Right> {
    Some(match method {
        "StartWorkflow" | "StartWorkflows" => Right { roles: &[Client, Admin], audited: Audited::No },
        // Each message of the stream wants the right to the call that it stands for.
        "GetWorkflow" | "ListWorkflows" | "CountWorkflows" | "GetQueueDepths" | "StreamWorkflows" => LOOK,
        "CancelWorkflow" => Right { roles: &[Client, Operator, Admin], audited: Audited::Announced },
        "RequeueWorkflow" | "PauseQueue" | "ResumeQueue" => {
            Right { roles: &[Operator, Admin], audited: Audited::Announced }
        }
        // A worker reads the rest of a long history this way.
        "ListStepAttempts" => Right { roles: &[Client, Worker, Operator, Admin], audited: Audited::No },
        "PollActivity" | "StreamWork" | "TakeRuns" | "RecordHeartbeat" | "BeginStep" | "CompleteStep"
        | "FailStep" | "ScheduleSleep" | "CompleteWorkflow" | "FailWorkflow" | "ReleaseWorkflow" => WORK,
        "GetServerInfo" => Right { roles: &[Client, Worker, Operator, Admin], audited: Audited::Told },
        "DeleteFinished" => Right { roles: &[Admin], audited: Audited::Announced },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use kagzi_proto::FILE_DESCRIPTOR_SET;
    use prost::Message as _;

    use super::*;

    #[test]
    fn every_call_of_the_protocol_has_a_right_and_all_of_the_admin_service_is_on_record() {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        for service in set.file.iter().flat_map(|file| &file.service) {
            for method in &service.method {
                let Some(right) = right(method.name()) else { panic!("{} has no right", method.name()) };
                assert!(right.roles.contains(&Admin), "{}", method.name());
                if service.name() == "AdminService" {
                    let looks = method.name().starts_with("Get");
                    let expected = if looks { Audited::Told } else { Audited::Announced };
                    assert_eq!(right.audited, expected, "{}", method.name());
                }
            }
        }
        assert_eq!(right("Unheard"), None);
    }
}
