"""The works that a methods paragraph cites, by author and year."""

from __future__ import annotations

# Each key is the citation as it stands in the text.
REFERENCES = {
    "Bao et al., 2022": "Bao H, Dong L, Piao S, Wei F. BEiT: BERT Pre-Training of Image Transformers. ICLR 2022. "
    "arXiv:2106.08254.",
    "Dosovitskiy et al., 2021": "Dosovitskiy A, Beyer L, Kolesnikov A, et al. An Image is Worth 16x16 Words: "
    "Transformers for Image Recognition at Scale. ICLR 2021. arXiv:2010.11929.",
    "Guo et al., 2017": "Guo C, Pleiss G, Sun Y, Weinberger KQ. On Calibration of Modern Neural Networks. ICML 2017. "
    "arXiv:1706.04599.",
    "He et al., 2016": "He K, Zhang X, Ren S, Sun J. Deep Residual Learning for Image Recognition. CVPR 2016. "
    "arXiv:1512.03385.",
    "Huang et al., 2016": "Huang G, Sun Y, Liu Z, Sedra D, Weinberger KQ. Deep Networks with Stochastic Depth. ECCV "
    "2016. arXiv:1603.09382.",
    "Krizhevsky, 2014": "Krizhevsky A. One weird trick for parallelizing convolutional neural networks. "
    "arXiv:1404.5997, 2014.",
    "Kumar et al., 2022": "Kumar A, Raghunathan A, Jones R, Ma T, Liang P. Fine-Tuning can Distort Pretrained Features "
    "and Underperform Out-of-Distribution. ICLR 2022. arXiv:2202.10054.",
    "Loshchilov and Hutter, 2017": "Loshchilov I, Hutter F. SGDR: Stochastic Gradient Descent with Warm Restarts. ICLR "
    "2017. arXiv:1608.03983.",
    "Loshchilov and Hutter, 2019": "Loshchilov I, Hutter F. Decoupled Weight Decay Regularization. ICLR 2019. "
    "arXiv:1711.05101.",
    "Melas-Kyriazi, 2020": "Melas-Kyriazi L. PyTorch-Pretrained-ViT. github.com/lukemelas/PyTorch-Pretrained-"
    "ViT, 2020.",
    "Paszke et al., 2019": "Paszke A, Gross S, Massa F, et al. PyTorch: An Imperative Style, High-Performance Deep "
    "Learning Library. NeurIPS 2019. arXiv:1912.01703.",
    "Rao and Scott, 1992": "Rao JNK, Scott AJ. A Simple Method for the Analysis of Clustered Binary Data. Biometrics "
    "1992;48:577-585.",
    "Sharma and Verma, 2023": "Sharma AK, Verma NK. A Novel Vision Transformer with Residual in Self-attention for "
    "Biomedical Image Classification. arXiv:2306.01594, 2023.",
    "Szegedy et al., 2016": "Szegedy C, Vanhoucke V, Ioffe S, Shlens J, Wojna Z. Rethinking the Inception Architecture "
    "for Computer Vision. CVPR 2016. arXiv:1512.00567.",
    "TorchVision, 2016": "TorchVision maintainers and contributors. TorchVision: PyTorch's Computer Vision library. "
    "github.com/pytorch/vision, 2016.",
    "Touvron et al., 2021": "Touvron H, Cord M, Sablayrolles A, Synnaeve G, Jégou H. Going deeper with Image "
    "Transformers. ICCV 2021. arXiv:2103.17239.",
    "Wightman, 2019": "Wightman R. PyTorch Image Models. github.com/huggingface/pytorch-image-models, 2019. "
    "doi:10.5281/zenodo.4414861.",
    "Wilson, 1927": "Wilson EB. Probable Inference, the Law of Succession, and Statistical Inference. J Am Stat Assoc "
    "1927;22:209-212.",
    "Youden, 1950": "Youden WJ. Index for rating diagnostic tests. Cancer 1950;3:32-35.",
}


def cited(text: str) -> list[str]:
    """The works that a text cites, in alphabetical order."""
    return [REFERENCES[key] for key in sorted(REFERENCES) if key in text]


def with_references(text: str) -> str:
    """The text, and the works that it cites as a list below it."""
    works = cited(text)
    return "\n\n".join([text, "\n".join(["References", *works])]) if works else text
