"""Where torch is a CPU build, torchvision and torchaudio may not import; PEFT imports them by way of transformers."""

from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build

if torch_is_cpu_build():
    mend_torchvision()
    mend_torchaudio()
