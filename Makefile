.PHONY: install quickstart test test-long test-newest test-pythons test-clients test-vllm test-ray test-quantization lint bench docs screenshots notebooks clean

install:  ## set up .venv; does nothing where it is up to date
	@scripts/install.sh

quickstart: install  ## train a soft prompt on real data and show what it does
	@.venv/bin/softprompt demo --force

test: install  ## layout, lint, types and the tests
	@scripts/test.sh

test-long: install  ## the tests that take long: the course notebook, more members of slow kinds, every causal class
	@.venv/bin/python -m pytest -m long

test-newest:  ## the tests against today's releases of what softprompt requires, in an environment of their own
	@scripts/test_newest.sh

test-pythons:  ## the packages and the fast tests on Python 3.10 and 3.13, in environments of their own
	@scripts/test_pythons.sh

test-clients:  ## the server asked by the clients that people have, in an environment of their own
	@scripts/test_clients.sh

test-vllm:  ## the tests of the vLLM engine, in an environment of their own
	@scripts/test_vllm.sh

test-ray:  ## the tests of train-many, predict and serving over Ray, in an environment of their own
	@scripts/test_ray.sh

test-quantization:  ## the tests of bases in 8 and 4 bits, in an environment of their own
	@scripts/test_quantization.sh

lint: install  ## layout, lint and types
	@scripts/lint.sh

bench: install  ## measure the training step
	@.venv/bin/python -m benchmarks.training_step

docs:  ## the docs as a site, in site/: links checked, in an environment of their own
	@scripts/docs.sh

screenshots: install  ## the docs' pictures of the playground and of a report
	@.venv/bin/python -m scripts.screenshots

notebooks: install  ## run the course notebooks and keep their outputs
	@.venv/bin/python -m scripts.notebooks

clean:  ## remove what the tools cached; .venv stays
	rm -rf .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache dist site
	find benchmarks src tests -name __pycache__ -type d -prune -exec rm -rf {} +
