//! Calls of storage drivers: what is asked, what was answered, and what a failure means.
use csi::Code;

/// A call of a driver. Repeating it is harmless, as CSI wants of every driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Name of the driver.
    pub driver: String,
    pub request: Request,
    /// Namespace and name of the secret whose data goes with the request; read when the call is made.
    pub secret: Option<(String, String)>,
}

impl Call {
    pub(crate) fn new(driver: &str, request: impl Into<Request>) -> Self {
        Self { driver: driver.to_owned(), request: request.into(), secret: None }
    }

    #[must_use]
    pub(crate) fn with_secret(mut self, secret: Option<(String, String)>) -> Self {
        self.secret = secret;
        self
    }

    /// Whether this is a try at what `other` failed at. The node that a volume is made for may be another one.
    pub fn repeats(&self, other: &Self) -> bool {
        match (&self.request, &other.request) {
            (Request::CreateVolume(new), Request::CreateVolume(old)) => new.name == old.name,
            _ => self == other,
        }
    }

    /// Whether the driver has something after a call that failed, which nothing in the API tells of.
    pub fn leaves_traces(&self) -> bool {
        matches!(self.request, Request::CreateVolume(_))
    }
}

/// Makes the two enums of what controllers ask and hear, and how one becomes the other.
macro_rules! calls {
    ($($name:ident: $request:ident -> $response:ident by $method:ident;)*) => {
        /// What a driver is asked.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Request {
            $($name(Box<csi::$request>),)*
        }

        /// What a driver answered, by the request's name.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Answer {
            $($name(Box<csi::$response>),)*
        }

        $(impl From<csi::$request> for Request {
            fn from(request: csi::$request) -> Self {
                Self::$name(Box::new(request))
            }
        })*

        impl Request {
            /// As CSI names the call.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }

            /// Asks the controller service of a driver.
            ///
            /// # Errors
            /// What the driver answered.
            pub async fn ask(self, driver: &csi::ControllerClient) -> Result<Answer, csi::Status> {
                match self {
                    $(Self::$name(request) => {
                        driver.$method(*request).await.map(|response| Answer::$name(Box::new(response)))
                    })*
                }
            }
        }
    };
}

calls! {
    CreateVolume: CreateVolumeRequest -> CreateVolumeResponse by create_volume;
    DeleteVolume: DeleteVolumeRequest -> DeleteVolumeResponse by delete_volume;
    ControllerPublishVolume: ControllerPublishVolumeRequest -> ControllerPublishVolumeResponse by controller_publish_volume;
    ControllerUnpublishVolume: ControllerUnpublishVolumeRequest -> ControllerUnpublishVolumeResponse by controller_unpublish_volume;
    ControllerExpandVolume: ControllerExpandVolumeRequest -> ControllerExpandVolumeResponse by controller_expand_volume;
    ControllerModifyVolume: ControllerModifyVolumeRequest -> ControllerModifyVolumeResponse by controller_modify_volume;
    GetCapacity: GetCapacityRequest -> GetCapacityResponse by get_capacity;
    CreateSnapshot: CreateSnapshotRequest -> CreateSnapshotResponse by create_snapshot;
    DeleteSnapshot: DeleteSnapshotRequest -> DeleteSnapshotResponse by delete_snapshot;
    ListSnapshots: ListSnapshotsRequest -> ListSnapshotsResponse by list_snapshots;
}

impl Request {
    /// Puts a secret's data into the request, if it is of a kind that takes any.
    pub fn give_secrets(&mut self, data: std::collections::BTreeMap<String, String>) {
        match self {
            Self::CreateVolume(r) => r.secrets = data,
            Self::DeleteVolume(r) => r.secrets = data,
            Self::ControllerPublishVolume(r) => r.secrets = data,
            Self::ControllerUnpublishVolume(r) => r.secrets = data,
            Self::ControllerExpandVolume(r) => r.secrets = data,
            Self::ControllerModifyVolume(r) => r.secrets = data,
            Self::CreateSnapshot(r) => r.secrets = data,
            Self::DeleteSnapshot(r) => r.secrets = data,
            Self::ListSnapshots(r) => r.secrets = data,
            Self::GetCapacity(_) => {}
        }
    }
}

/// Why a call came to nothing, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The driver's; `None`: it was not asked.
    pub code: Option<Code>,
    /// The driver's words, or why it was not asked.
    pub message: String,
}

impl Failure {
    /// Whether the driver has surely done nothing and is not at it. Source: CSI, "Error Scheme"; as upstream's provisioner
    /// reads it.
    pub fn is_final(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
        !matches!(self.code, Some(Cancelled | DeadlineExceeded | Unavailable | ResourceExhausted | Aborted))
    }
}

impl std::fmt::Display for Failure {
    /// As gRPC's clients in Go print it, which is what events upstream say.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            None => write!(f, "{}", self.message),
            Some(Code::Cancelled) => write!(f, "rpc error: code = Canceled desc = {}", self.message),
            Some(code) => write!(f, "rpc error: code = {code:?} desc = {}", self.message),
        }
    }
}
