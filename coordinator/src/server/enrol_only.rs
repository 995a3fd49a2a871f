//! What a client without a certificate may call: `Enrol`, and nothing else. Other calls are refused
//! by their path, before a byte of their body is read.

use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

const ENROL: &str = "/thanos.v1.Coordinator/Enrol";

/// Passes calls of `Enrol` on to the service inside.
#[derive(Clone)]
pub(super) struct EnrolOnly<S>(pub(super) S);

impl<S: NamedService> NamedService for EnrolOnly<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for EnrolOnly<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() == ENROL {
            return Box::pin(self.0.call(request));
        }
        let refusal = Status::unauthenticated("present the certificate that Enrol issues");
        Box::pin(async move { Ok(refusal.into_http()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_proto::v1::coordinator_server::SERVICE_NAME;

    #[test]
    fn the_path_is_that_of_the_service() {
        assert_eq!(ENROL, format!("/{SERVICE_NAME}/Enrol"));
    }
}
