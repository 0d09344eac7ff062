# The image: one static binary, nothing else. Builds for amd64 and arm64 from either, without emulation:
#   docker build -t localhost/wirevip:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 …

FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
ARG TARGETARCH
WORKDIR /src
COPY . .
# lab/setup/static.sh fetches the cross compiler itself where the two architectures differ.
RUN case "$TARGETARCH" in amd64) arch=x86_64 ;; arm64) arch=aarch64 ;; *) echo "amd64 and arm64 only" >&2; exit 1 ;; esac \
 && install -D "$(lab/setup/static.sh $arch)" /out/wirevip

FROM scratch
COPY --from=build /out/wirevip /wirevip
# Not a choice: Kubernetes gives an added capability to processes of user 0 only. The pod drops all others.
USER 0:0
ENTRYPOINT ["/wirevip"]
CMD ["run"]
