# An image with one static binary and the certificates of the public authorities, and nothing else: no shell, no
# C library, no package manager. The same image runs as the api (/start.sh, the default) and as the worker
# (/start-background.sh).

FROM rust:1-slim-bookworm AS builder
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# crt-static puts the C library into the binary. linux_getrandom makes it ask the kernel for random numbers by system
# call: otherwise a static binary reads /dev/urandom, which an image without /dev does not have. Naming the target,
# even the machine's own, keeps both from build scripts and procedural macros, which cannot be static.
ENV RUSTFLAGS="-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\""
# There is no shell in the image to run scripts, so the two names that deployments start are links to the binary,
# which sees by which one it was called.
RUN target="$(uname -m)-unknown-linux-gnu" \
    && cargo build --release --locked --target "$target" \
    && mkdir -p /image/etc/ssl/certs \
    && cp "target/$target/release/servicebroker" /image/servicebroker \
    && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ca-certificates.crt \
    && ln -s servicebroker /image/start.sh \
    && ln -s servicebroker /image/start-background.sh

FROM scratch
COPY --from=builder /image/ /
# Nobody's number on any system; nothing in the image belongs to it, and the processes write no files.
USER 65532:65532
EXPOSE 8443
CMD ["/start.sh"]
