# The only commands that CI and people call. Each line says what it does: `make help`.
.PHONY: help demo test test-fast check gen e2e bench fuzz mutants image cluster cluster-down
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12
demo: ## build, get Envoy, run the zero-trust shop and print what was allowed and refused
	@scripts/demo
test: ## everything, fast tiers first
	@scripts/test all
test-fast: ## the newcomer's loop: unit, golden, transcript and property tests, no Envoy and no root
	@scripts/test fast
e2e: ## only the tests with real Envoys
	@scripts/test e2e
fuzz: ## policies and requests at random, evaluate against a real Envoy, for FUZZ_SECONDS
	@scripts/fuzz
mutants: ## plants mistakes in the matchers and the translator; each must make a test fail
	@scripts/mutants
check: ## fmt, clippy, deny, each crate alone, generated files
	@scripts/check
gen: ## regenerate what is generated; fails if that changes a file
	@scripts/gen
bench: ## measure what the README and docs/performance.md claim
	@scripts/bench
image: ## the image as an OCI archive, without Docker: countersign, Envoy, bill of materials
	@scripts/image
cluster: ## a whole Kubernetes node on this machine with Countersign installed by Helm; prints its kubeconfig
	@scripts/cluster
cluster-down: ## takes that node away
	@scripts/cluster down
