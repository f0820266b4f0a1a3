//! One table per service makes its server's trait, the dispatch of its calls by path, and its client.

/// A gRPC service of unary calls.
///
/// `Trait` is what an implementation offers; a call that it leaves out answers `UNIMPLEMENTED`, as CSI wants of a driver
/// without that capability. `Server` puts an implementation behind a listener, `Client` calls one.
#[macro_export]
macro_rules! service {
    (
        $(#[$about:meta])* $path:literal: $service:ident, $server:ident, $client:ident;
        $($(#[$what:meta])* $method:ident = $rpc:literal ($request:ty) -> $response:ty;)*
    ) => {
        $(#[$about])*
        #[async_trait::async_trait]
        pub trait $service: Send + Sync + 'static {
            $(
                $(#[$what])*
                async fn $method(&self, request: $request) -> Result<$response, tonic::Status> {
                    let _ = request;
                    Err(tonic::Status::unimplemented(concat!($rpc, " is not offered by this driver")))
                }
            )*
        }

        #[doc = concat!("Serves a [`", stringify!($service), "`].")]
        pub struct $server<T>(pub std::sync::Arc<T>);

        impl<T> Clone for $server<T> {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }

        impl<T: $service> tonic::server::NamedService for $server<T> {
            const NAME: &'static str = $path;
        }

        impl<T: $service> tower::Service<http::Request<tonic::body::Body>> for $server<T> {
            type Response = http::Response<tonic::body::Body>;
            type Error = std::convert::Infallible;
            type Future = $crate::rpc::Boxed<Result<Self::Response, Self::Error>>;

            fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
                std::task::Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
                let service = self.0.clone();
                match request.uri().path() {
                    $(concat!("/", $path, "/", $rpc) => {
                        Box::pin(async move {
                            let call = $crate::rpc::Call(move |r: $request| {
                                let service = service.clone();
                                async move { service.$method(r).await }
                            });
                            let codec = tonic_prost::ProstCodec::default();
                            Ok(tonic::server::Grpc::new(codec).unary(call, request).await)
                        })
                    })*
                    _ => Box::pin(async { Ok(tonic::Status::unimplemented("no such call").into_http()) }),
                }
            }
        }

        #[doc = concat!("Calls a [`", stringify!($service), "`] of somebody else.")]
        #[derive(Clone, Debug)]
        pub struct $client($crate::Driver);

        impl $client {
            /// Calls go over `driver`'s connection.
            pub fn new(driver: &$crate::Driver) -> Self {
                Self(driver.clone())
            }

            $(
                $(#[$what])*
                ///
                /// # Errors
                /// What the driver answered; `DEADLINE_EXCEEDED` after the connection's time for a call; `UNAVAILABLE` where
                /// nobody answers.
                pub async fn $method(&self, request: $request) -> Result<$response, tonic::Status> {
                    self.0.call(concat!("/", $path, "/", $rpc), request).await
                }
            )*
        }
    };
}

use std::{future::Future, pin::Pin};

use tonic::{Request, Response, Status, server::UnaryService};

pub type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A function as tonic's unary service.
pub struct Call<F>(pub F);

impl<F, Fut, Req, Res> UnaryService<Req> for Call<F>
where
    F: FnMut(Req) -> Fut,
    Fut: Future<Output = Result<Res, Status>> + Send + 'static,
{
    type Response = Res;
    type Future = Boxed<Result<Response<Res>, Status>>;

    fn call(&mut self, request: Request<Req>) -> Self::Future {
        let answer = (self.0)(request.into_inner());
        Box::pin(async move { answer.await.map(Response::new) })
    }
}
