# Thin on purpose: the work is in tests/lab. Paths are relative, so a checkout whose path has a space works.
SHELL := /bin/sh
# PYTHON names the interpreter of `make versions`.
export PYTHON
LAB := python3 -m tests.lab
.DEFAULT_GOAL := help
.PHONY: help demo test versions setup lab-up lab-status lab-shell lab-down converge verify plan molecule bench bench-policy bench-firewall bench-egress proof-safety proof-boot proof-gpu proof-dkms build clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 16

demo: ## set up, build the lab, converge, show who gets an answer and who does not
	@$(LAB) demo

test: ## every check of the repository; some of them with ONLY="ruff units"
	@$(LAB) test $(ONLY)

versions: ## sanity and units under each ansible-core that is promised: make versions ONLY=2.20 PYTHON=python3.12
	@$(LAB) versions $(ONLY)

setup: ## install what the lab needs on this machine
	@$(LAB) setup

lab-up: ## bring the lab's hosts up
	@$(LAB) up

lab-status: ## hosts with addresses and state, images, caches
	@$(LAB) status

lab-shell: ## an SSH session on a host: make lab-shell HOST=app1
	@$(LAB) shell $(HOST)

lab-down: ## remove the lab's hosts and networks
	@$(LAB) down

converge: ## install the collection as built and run the site playbook against the lab
	@$(LAB) converge

verify: ## compare the expected reachability with the live one
	@$(LAB) verify

plan: ## compile the perimeter and print it in words; touches no host
	@$(LAB) plan

molecule: ## the molecule scenario, from bare hosts to their removal
	@$(LAB) molecule

bench: ## time and count the first and the unchanged run
	@$(LAB) bench

bench-policy: ## time and count a client that is added and taken away by the policy playbook
	@$(LAB) bench --policy

proof-safety: ## prove that nothing opens and nobody is locked out, while all changes; parts of it with PARTS="moments lockout boot_closed"
	@$(LAB) proof-safety $(PARTS)

proof-boot: ## boot a virtual machine in every way that may open it: make proof-boot CASES=broken,full
	@$(LAB) proof-boot $(if $(CASES),cases=$(CASES))

proof-gpu: ## prove on hosts of their own how the GPU driver comes, changes, is refused and is finished after a failure; parts of it with TESTS="stop or killed"
	@$(LAB) proof-gpu $(if $(TESTS),-k "$(TESTS)")

proof-dkms: ## have DKMS build Debian's open GPU module for Debian's kernel
	@$(LAB) proof-dkms

bench-firewall: ## what 100,000 entries of an allowlist cost: seconds to apply, connections per second
	@$(LAB) bench-firewall

bench-egress: ## what a flood of refused requests from one host costs another
	@$(LAB) bench-egress

build: ## make the collection's tarball in .lab/dist
	@$(LAB) build

clean: ## remove containers, networks, images and .lab; with CACHES=1 the caches too
	@$(LAB) clean $(if $(CACHES),--caches)
